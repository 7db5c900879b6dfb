"""From slides and plain images to square patches at one resolution, and the names that patches have on disk.

`ROOT/patches/<dataset>/<cohort>/single_<size>/<slide>/<x>_<y>.jpeg`: x, y the patch's top-left pixel at the target resolution.
Coordinates here are pixels at the target resolution unless a name says otherwise; areas are fractions of the slide.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from diffusion.errors import InputError, MissingError
from diffusion.files import written_aside

SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm")
)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp"))
SAME_RESOLUTION = 0.05  # resolutions nearer than this are one: microscopes differ by as much, and resampling blurs
MASK_SIDE = 2048  # longest side, in pixels, of the picture on which tissue is told from glass
# Glass has a saturation of 0.01 to 0.04 and pale stroma 0.08. Otsu's threshold would fall between the two stains of a slide
# that is all tissue, and in the noise of one that is all glass; held between these it does neither.
SATURATION_RANGE = (0.05, 0.08)

WHOLE_SLIDE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """Where patches lie: squares of `size`, `step` apart, wholly inside `area` (left, top, right, bottom; fractions)."""

    size: int
    step: int
    area: tuple[float, float, float, float] = WHOLE_SLIDE

    def __post_init__(self) -> None:
        left, top, right, bottom = self.area
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(
                f"got the area {self.area}, expected fractions X0 Y0 X1 Y1 with 0 <= X0 < X1 <= 1 and 0 <= Y0 < Y1 <= 1"
            )

    def corners(self, width: int, height: int) -> list[tuple[int, int]]:
        """Top-left pixels of the patches in a slide of `width` x `height` pixels, row by row."""
        left, top, right, bottom = self.area
        columns = self._starts(left * width, right * width)
        rows = self._starts(top * height, bottom * height)
        return [(x, y) for y in rows for x in columns]

    def _starts(self, low: float, high: float) -> range:
        tiny = 1e-6  # of a pixel: 0.29 * 100 is 28.999999999999996
        return range(math.ceil(low - tiny), math.floor(high + tiny) - self.size + 1, self.step)


class Slide(Protocol):
    """A picture of tissue at the target resolution."""

    width: int
    height: int
    note: str  # which resolution was read, in words

    def read(self, x: int, y: int, size: int) -> Image.Image:
        """The RGB square with top-left pixel x, y."""

    def thumbnail(self, side: int) -> Image.Image:
        """The whole slide in RGB, its longest side at most `side` pixels."""

    def close(self) -> None: ...


def open_slide(path: Path, mpp: float, image_mpp: float | None = None) -> Slide:
    """Open a slide or plain image so that it reads at `mpp` microns per pixel.

    A plain image knows no resolution: it is `image_mpp`, or else taken pixel for pixel.
    Raises InputError for a file that is neither, a slide without resolution, or one coarser than `mpp`.
    """
    import openslide

    if not path.is_file():
        raise MissingError(f"no slide at {path}")
    if openslide.OpenSlide.detect_format(path) is None:
        return PlainImage(path, mpp, image_mpp)
    return PyramidSlide(path, mpp)


class PlainImage:
    """An image that Pillow reads, held in memory."""

    def __init__(self, path: Path, mpp: float, image_mpp: float | None):
        try:
            image = Image.open(path)
            image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} is neither a slide nor an image that can be read ({error})") from error
        if image.mode != "RGB":
            raise InputError(f"{path} is a {image.mode} image, expected RGB: convert it first")
        self._image, self.note = image, "native"
        if image_mpp is not None:
            factor = shrink_factor(path, image_mpp, mpp)
            self.note = f"{image_mpp * factor:.3g} um/px"
            if factor != 1:
                size = (max(1, int(image.width / factor)), max(1, int(image.height / factor)))
                self._image = image.resize(
                    size, Image.Resampling.LANCZOS, box=(0, 0, size[0] * factor, size[1] * factor)
                )
        self.width, self.height = self._image.size

    def read(self, x: int, y: int, size: int) -> Image.Image:
        return self._image.crop((x, y, x + size, y + size))

    def thumbnail(self, side: int) -> Image.Image:
        small = self._image.copy()
        small.thumbnail((side, side), Image.Resampling.BOX)
        return small

    def close(self) -> None:
        self._image.close()


class PyramidSlide:
    """A slide that OpenSlide reads: several levels, of which the nearest finer one is resampled."""

    def __init__(self, path: Path, mpp: float):
        import openslide

        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise InputError(f"{path} cannot be opened ({error})") from error
        self._path = path
        native = slide_mpp(path, self._slide.properties)
        wanted = shrink_factor(path, native, mpp)
        # The coarsest level that is not coarser than wanted, give or take what counts as the same.
        self._level = max(
            i
            for i, down in enumerate(self._slide.level_downsamples)
            if i == 0 or down <= wanted * (1 + SAME_RESOLUTION)
        )
        level_factor = self._slide.level_downsamples[self._level]
        self._per_level = _unless_same(wanted / level_factor)  # level pixels per patch pixel
        self._per_base = self._per_level * level_factor  # pixels of the finest level per patch pixel
        level_width, level_height = self._slide.level_dimensions[self._level]
        self.width, self.height = int(level_width / self._per_level), int(level_height / self._per_level)
        self.note = f"{native * self._per_base:.3g} um/px"

    def read(self, x: int, y: int, size: int) -> Image.Image:
        corner = (round(x * self._per_base), round(y * self._per_base))
        side = round(size * self._per_level)
        region = self._read(corner, side)
        return region if side == size else region.resize((size, size), Image.Resampling.LANCZOS)

    def _read(self, corner: tuple[int, int], side: int) -> Image.Image:
        import openslide

        try:
            return _on_white(self._slide.read_region(corner, self._level, (side, side)))
        except openslide.OpenSlideError as error:
            raise InputError(f"{self._path} is broken at {corner} ({error})") from error

    def thumbnail(self, side: int) -> Image.Image:
        import openslide

        try:
            return self._slide.get_thumbnail((side, side)).convert("RGB")
        except openslide.OpenSlideError as error:
            raise InputError(f"{self._path} cannot be read ({error})") from error

    def close(self) -> None:
        self._slide.close()


def slide_mpp(path: Path, properties: dict[str, str]) -> float:
    """Microns per pixel of a slide's finest level. Raises InputError when the file does not say, or not one number."""
    try:
        across, down = float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])
    except (KeyError, ValueError):
        across = down = math.nan
    if not (across > 0 and down > 0):
        raise InputError(
            f"{path} does not say its resolution (openslide.mpp-x and -y); export it as a plain image and give --image_mpp"
        )
    if not _same(across / down):
        raise InputError(f"{path} has pixels of {across:.4g} x {down:.4g} um; only square ones can be used")
    return (across + down) / 2


def shrink_factor(path: Path, native_mpp: float, mpp: float) -> float:
    """How many native pixels make one patch pixel; 1 when the two are nearly the same.

    Raises InputError when the file is coarser than wanted: enlarging it would invent detail.
    """
    factor = _unless_same(mpp / native_mpp)
    if factor < 1:
        raise InputError(
            f"{path} has {native_mpp:.4g} um/px, coarser than the {mpp:.4g} asked for; give --mpp {native_mpp:.4g} or more"
        )
    return factor


def _same(ratio: float) -> bool:
    return abs(ratio - 1) <= SAME_RESOLUTION


def _unless_same(ratio: float) -> float:
    return 1.0 if _same(ratio) else ratio


def _on_white(image: Image.Image) -> Image.Image:
    """RGBA to RGB; what the scanner left out is white, as glass is."""
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


class TissueMask:
    """Which parts of a slide are tissue, by colour saturation on a thumbnail."""

    def __init__(self, slide: Slide, side: int = MASK_SIDE):
        self.mask = tissue_mask(slide.thumbnail(side))  # bool (h, w)
        self._scale = (self.mask.shape[1] / slide.width, self.mask.shape[0] / slide.height)

    def fraction(self, x: int, y: int, size: int) -> float:
        """The part of a patch that is tissue, 0 to 1."""
        across, down = self._scale
        rows = slice(math.floor(y * down), math.ceil((y + size) * down))
        columns = slice(math.floor(x * across), math.ceil((x + size) * across))
        return float(self.mask[rows, columns].mean())


def tissue_mask(image: Image.Image) -> np.ndarray:
    """RGB -> bool (height, width), true where the colour is more saturated than glass."""
    from skimage.filters import threshold_otsu

    saturation = np.asarray(image.convert("HSV").getchannel("S")) / 255
    threshold = float(np.clip(threshold_otsu(saturation), *SATURATION_RANGE))
    return saturation > threshold


def find_slides(paths: Iterable[Path]) -> list[Path]:
    """The files named, and the slides and images lying in the folders named, in natural order.

    Raises MissingError for a path that is not there or a folder without slides, InputError when two slides have one name.
    """
    slides = [slide for path in paths for slide in _slides_at(path)]
    by_name: dict[str, Path] = {}
    for slide in slides:
        other = by_name.setdefault(slide.stem, slide)
        if other != slide:
            raise InputError(
                f"{other} and {slide} would share the folder {slide.stem}; extract them to different cohorts"
            )
    return list(by_name.values())


def _slides_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingError(f"--slides: nothing at {path}")
    found = [
        file for file in path.iterdir() if file.suffix.lower() in SLIDE_SUFFIXES | IMAGE_SUFFIXES and file.is_file()
    ]
    if not found:
        raise MissingError(
            f"--slides: no slide or image in {path}; known are {', '.join(sorted(SLIDE_SUFFIXES | IMAGE_SUFFIXES))}"
        )
    return sorted(found, key=lambda file: natural_key(file.name))


def slide_folder(patches: Path, dataset: str, cohort: str, size: int, slide: str) -> Path:
    """Where the patches of one slide lie, below ROOT/patches."""
    return patches / dataset / cohort / f"single_{size}" / slide


def patch_file(folder: Path, x: int, y: int) -> Path:
    return folder / f"{x}_{y}.jpeg"


def list_patches(patches: Path, dataset: str, size: int) -> Iterator[str]:
    """Names, relative to ROOT/patches, of a data set's patches, in natural order: 128_0 before 1024_0.

    One folder after the other: no more than a folder's entries are in memory.
    """
    if (patches / dataset).is_dir():
        yield from _walk(patches / dataset, dataset, f"single_{size}", inside=False)


def _walk(folder: Path, name: str, wanted: str, inside: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        kept = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    for entry, is_folder in sorted(kept, key=lambda each: natural_key(each[0])):
        if is_folder:
            yield from _walk(folder / entry, f"{name}/{entry}", wanted, inside or entry == wanted)
        elif inside and entry.endswith(".jpeg"):
            yield f"{name}/{entry}"


def natural_key(name: str) -> tuple:
    """Sorts paths folder by folder, and the numbers in them as numbers; paths alike in that come in plain order."""
    return tuple(_natural(part) for part in name.split("/")), name


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", text))


def save_patch(image: Image.Image, path: Path, quality: int) -> None:
    """Write a JPEG without colour subsampling, aside and then in place, so that a patch that is there is whole."""
    with written_aside(path) as temporary:
        image.save(temporary, format="JPEG", quality=quality, subsampling=0)
