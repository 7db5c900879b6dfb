"""Images as callers have them: arrays, PIL images, files, and squares of slides."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image

from diffusion.data.images import open_image
from diffusion.data.slides.reader import SLIDE_SUFFIXES, PlainImage, open_slide
from diffusion.generation.conditions import NamedCondition, embed_square, middle_square
from diffusion.generation.regions import Region
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from diffusion.encoders.embedders import PatchEmbedder


@dataclass(frozen=True)
class SlideRegion:
    """A square of a slide whose top left corner is at x, y, in pixels of the slide's finest level.

    It is read at `mpp` microns per pixel, as the network was trained (0.5 is 20x). image_mpp: the resolution of the slide's
    finest level, whatever the file says itself.

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

    def read(self, size: int) -> Image.Image:
        """Read the square of `size` pixels. Raises MissingError, and InputError for one that reaches beyond the slide."""
        with closing(open_slide(Path(self.slide), self.mpp, self.image_mpp)) as slide:
            x, y = round(self.x / slide.factor), round(self.y / slide.factor)
            if min(x, y) < 0 or x + size > slide.width or y + size > slide.height:
                raise InputError(
                    f"{self.slide} has {slide.width} x {slide.height} pixels ({slide.note}): {size} x {size} from x {x}, "
                    f"y {y} on reach beyond it"
                )
            return slide.read(x, y, size)


ImageLike: TypeAlias = "np.ndarray | torch.Tensor | Image.Image | str | Path | SlideRegion"
Images: TypeAlias = "ImageLike | Sequence[ImageLike]"


def as_list(images: Images) -> list[ImageLike]:
    """Return images as a list: one image alone, a sequence of them, or an array (n, H, W, 3) of several."""
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    if isinstance(images, (np.ndarray, torch.Tensor, Image.Image, str, Path, SlideRegion)):
        return [images]
    return list(images)


def to_pil(image: ImageLike, name: str = "the image") -> Image.Image:
    """Return an RGB image: of uint8 (H, W, 3) or torch's (3, H, W), of a PIL image, or of an image file.

    Raises MissingError, InputError; for a slide's region, whose size only a run knows, see `read_square`.
    """
    if isinstance(image, SlideRegion):
        raise InputError(f"{name} is a SlideRegion of no size of its own: pass region.read(size)")
    if isinstance(image, (str, Path)):
        path = Path(image)
        if path.suffix.lower() in SLIDE_SUFFIXES - {".tif", ".tiff"}:
            raise InputError(f"{path} is a slide: name a square of it, as SlideRegion({str(path)!r}, x=..., y=...)")
        image = open_image(path)
        return image if image.mode == "RGB" else _refuse_mode(image, str(path))
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else _refuse_mode(image, name)
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if isinstance(image, torch.Tensor) and array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise InputError(
            f"{name} is {array.dtype} {array.shape}: expected uint8 (H, W, 3), or a tensor uint8 (3, H, W)"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _refuse_mode(image: Image.Image, name: str) -> Image.Image:
    raise InputError(f"{name} is a {image.mode} image, expected RGB: convert it first")


def read_square(image: ImageLike, size: int, name: str) -> Image.Image:
    """Return the square of `size` pixels in the middle of an image, or of a slide at its region. Raises InputError."""
    if isinstance(image, SlideRegion):
        return image.read(size)
    region = middle_square(PlainImage.of(to_pil(image, name), name), size, name)
    return region.slide.read(region.x, region.y, size)


def name_of(image: ImageLike, number: int) -> str:
    """Return a name for what is sampled for an image: of its file, where it has one."""
    if isinstance(image, (str, Path)):
        return Path(image).stem
    if isinstance(image, SlideRegion):
        return f"{Path(image.slide).stem}_{image.x}_{image.y}"
    return f"image_{number}"


def embed_images(images: Images, embedder: PatchEmbedder, size: int) -> list[NamedCondition]:
    """Embed images, of larger ones the square of `size` pixels in their middle, as conditions of a network of that size."""
    conditions = []
    for number, image in enumerate(as_list(images)):
        name = name_of(image, number)
        square = PlainImage.of(read_square(image, size, name), name)
        conditions.append(embed_square(Region(square, 0, 0), embedder, size, name))
    return conditions
