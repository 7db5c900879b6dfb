"""Images as callers have them: arrays, PIL images, files, samples, and squares of slides."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image

from diffusion.data.images import open_image, read_header
from diffusion.data.slides.reader import SLIDE_SUFFIXES, PlainImage, Slide, open_slide
from diffusion.generation.conditions import NamedCondition, embed_square, middle_square
from diffusion.generation.regions import Region
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from diffusion.encoders.embedders import PatchEmbedder


KEPT_CONDITIONS = 16  # of images that are sampled for again; with their pixels, 3 MB each at 1024


@dataclass(frozen=True)
class Sample:
    """A sampled image. number, name: of the condition that it was sampled for.

    pixels: uint8 (S, S, 3). tissue: the pixels that the condition describes, where they are known.

    Examples:
        >>> import pixcell
        >>> sample = next(pixcell.open_run("output/256").sample("tissue.png", steps=2))
        >>> sample.number, sample.name, sample.pixels.shape, sample.tissue.shape
        (0, 'tissue', (256, 256, 3), (256, 256, 3))
        >>> sample.image.save("sample.png")
    """

    number: int
    name: str
    pixels: np.ndarray
    tissue: np.ndarray | None = None

    @property
    def image(self) -> Image.Image:
        """The pixels as a PIL image."""
        return Image.fromarray(self.pixels)


@dataclass(frozen=True)
class SlideRegion:
    """A square of a slide whose top left corner is at x, y, in pixels of the slide's finest level.

    It is read at `mpp` microns per pixel, as the network was trained (0.5 is 20x). image_mpp: the resolution of the slide's
    finest level, whatever the file says itself. Raises InputError for values that are no numbers, or no resolutions.

    Examples:
        >>> region = SlideRegion("slide.svs", x=512, y=256)
        >>> region.read(256).size
        (256, 256)
    """

    slide: str | Path
    x: int = 0
    y: int = 0
    mpp: float = 0.5
    image_mpp: float | None = None

    def __post_init__(self):
        for name in ("x", "y", "mpp", "image_mpp"):
            value, is_length = getattr(self, name), name.endswith("mpp")
            if value is None and name == "image_mpp":
                continue
            if not (isinstance(value, Real) and math.isfinite(value)) or (is_length and value <= 0):
                expected = "microns per pixel, more than 0" if is_length else "pixels of the slide's finest level"
                raise InputError(f"{name} {value!r} of a region of {self.slide}: expected {expected}")

    def read(self, size: int) -> Image.Image:
        """Read the square of `size` pixels. Raises MissingError, and InputError for one that reaches beyond the slide."""
        with closing(self.open()) as slide:
            return slide.read(*self.corner(slide, size), size)

    def open(self) -> Slide:
        """Open the slide, for the caller to close. Raises MissingError, InputError."""
        return open_slide(Path(self.slide), self.mpp, self.image_mpp)

    def corner(self, slide: Slide, size: int) -> tuple[int, int]:
        """Return x, y at the slide's resolution. Raises InputError for a square of `size` pixels that reaches beyond it."""
        x, y = round(self.x / slide.factor), round(self.y / slide.factor)
        if min(x, y) < 0 or x + size > slide.width or y + size > slide.height:
            raise InputError(
                f"{self.slide} has {slide.width} x {slide.height} pixels ({slide.note}): {size} x {size} from x {x}, "
                f"y {y} on reach beyond it"
            )
        return x, y


ImageLike: TypeAlias = "np.ndarray | torch.Tensor | Image.Image | Sample | str | Path | SlideRegion"
Images: TypeAlias = "ImageLike | Iterable[ImageLike]"


def as_list(images: Images) -> Sequence[ImageLike]:
    """Return images as a list: one image alone, several of them, or an array (n, H, W, 3). Raises InputError for none."""
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        found = list(images)
    elif isinstance(images, (np.ndarray, torch.Tensor, Image.Image, Sample, str, Path, SlideRegion)):
        found = [images]
    elif isinstance(images, Iterable):
        found = list(images)
    else:
        raise InputError(
            f"images are of type {type(images).__name__}: expected arrays, PIL images, files or slides' regions"
        )
    if not found:
        raise InputError("no images: expected at least one")
    return found


def check_images(images: Sequence[ImageLike], size: int) -> None:
    """Check, without reading files' pixels, that images are there and have `size` pixels a side or more.

    PIL images are loaded, since their files may be closed before they are needed. Raises MissingError, InputError.
    """
    regions: dict[tuple, list[SlideRegion]] = {}
    for number, image in enumerate(images):
        if isinstance(image, SlideRegion):
            regions.setdefault((str(image.slide), image.mpp, image.image_mpp), []).append(image)
            continue
        name = label_of(image, number)
        width, height = measure(image, name)
        if min(width, height) < size:
            raise InputError(f"{name} has {width} x {height} pixels: expected {size} x {size} or more")
    for of_slide in regions.values():
        with closing(of_slide[0].open()) as slide:
            for region in of_slide:
                region.corner(slide, size)


def measure(image: ImageLike, name: str) -> tuple[int, int]:
    """Return width and height of an image, of a file as its header has them. Raises as `to_pil`."""
    if isinstance(image, (str, Path)):
        header = read_header(_image_path(image))
        _check_mode(header.mode, name)
        return header.width, header.height
    if isinstance(image, Image.Image):
        _check_mode(image.mode, name)
        try:
            image.load()
        except Exception as error:  # decoders raise nearly anything when a file is broken
            raise InputError(f"{name} cannot be read ({error})") from None
        return image.size
    array = _to_array(image, name)
    return array.shape[1], array.shape[0]


def to_pil(image: ImageLike, name: str = "the image") -> Image.Image:
    """Return an RGB image: of uint8 (H, W, 3) or torch's (3, H, W), of a PIL image, a sample, or an image file.

    Raises MissingError, InputError; for a slide's region, whose size only a run knows, see `read_square`.
    """
    if isinstance(image, (str, Path)):
        image, name = open_image(_image_path(image)), str(image)
    if isinstance(image, Image.Image):
        _check_mode(image.mode, name)
        return image
    return Image.fromarray(np.ascontiguousarray(_to_array(image, name)))


def _image_path(image: str | Path) -> Path:
    path = Path(image)
    if path.suffix.lower() in SLIDE_SUFFIXES - {".tif", ".tiff"}:
        raise InputError(f"{path} is a slide: name a square of it, as SlideRegion({str(path)!r}, x=..., y=...)")
    return path


def _check_mode(mode: str, name: str) -> None:
    if mode != "RGB":
        raise InputError(f"{name} is a {mode} image, expected RGB: convert it first")


def _to_array(image: np.ndarray | torch.Tensor | Sample | SlideRegion, name: str) -> np.ndarray:
    """Return uint8 (H, W, 3), of an array the memory that it has. Raises InputError."""
    if isinstance(image, SlideRegion):
        raise InputError(f"{name} is a SlideRegion of no size of its own: pass region.read(size)")
    if isinstance(image, Sample):
        image = image.pixels
    array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if isinstance(image, torch.Tensor) and array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        kind = f"{array.dtype} {array.shape}" if isinstance(image, (np.ndarray, torch.Tensor)) else repr(image)[:80]
        raise InputError(f"{name} is {kind}: expected uint8 (H, W, 3), or a tensor uint8 (3, H, W)")
    return array


def read_square(image: ImageLike, size: int, name: str) -> Image.Image:
    """Return the square of `size` pixels in the middle of an image, or of a slide at its region. Raises InputError."""
    if isinstance(image, SlideRegion):
        return image.read(size)
    region = middle_square(PlainImage.from_image(to_pil(image, name), name), size, name)
    return region.slide.read(region.x, region.y, size)


def name_of(image: ImageLike, number: int) -> str:
    """Return a name for what is sampled for an image: of its file, where it has one."""
    if isinstance(image, (str, Path)):
        return Path(image).stem
    if isinstance(image, SlideRegion):
        return f"{Path(image.slide).stem}_{image.x}_{image.y}"
    return image.name if isinstance(image, Sample) else f"image_{number}"


def label_of(image: ImageLike, number: int) -> str:
    """Return how messages call an image: by its file, else by its number."""
    return str(image) if isinstance(image, (str, Path)) else f"image {number}"


class ImageConditions:
    """Conditions of images, read and embedded when they are asked for; i goes on from the first after the last.

    Each is embedded in a pass of its own, so that its tokens depend on no other image, to the bit.
    """

    def __init__(self, images: Sequence[ImageLike], embedder: PatchEmbedder, size: int):
        """Raises MissingError, InputError for images that are not there or too small."""
        check_images(images, size)
        self.images, self.embedder, self.size = images, embedder, size
        self._kept = functools.lru_cache(KEPT_CONDITIONS)(self._embed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> NamedCondition:
        return self._kept(i % len(self.images))

    def _embed(self, number: int) -> NamedCondition:
        image = self.images[number]
        square = PlainImage.from_image(read_square(image, self.size, label_of(image, number)))
        return embed_square(Region(square, 0, 0), self.embedder, self.size, name_of(image, number))
