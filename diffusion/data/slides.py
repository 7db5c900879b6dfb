"""Slides and plain images, opened so that they read at one resolution.

Coordinates here are pixels at that resolution unless a name says otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from PIL import Image

from diffusion.data.patches import natural_key
from diffusion.errors import InputError, MissingError

SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm")
)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp"))
LARGE_LEVEL = 64_000_000  # pixels of a level that is not read at once, 256 MB
SAME_RESOLUTION = 0.05  # resolutions nearer than this are one: microscopes differ by as much, and resampling blurs


class Slide(Protocol):
    """A picture of tissue at the target resolution."""

    width: int
    height: int
    note: str  # which resolution was read, in words
    told: bool  # whether the file does not say its resolution
    factor: float  # pixels of the file's finest level to one here, a side

    def read(self, x: int, y: int, size: int) -> Image.Image:
        """The RGB square with top-left pixel x, y; beyond the slide it is white, as glass is."""

    def thumbnail(self, side: int) -> Image.Image:
        """The whole slide in RGB, its longest side at most `side` pixels."""

    def close(self) -> None: ...


def open_slide(path: Path, mpp: float, image_mpp: float | None = None) -> Slide:
    """Open a slide or plain image so that it reads at `mpp` microns per pixel.

    image_mpp: the resolution of files that do not say theirs. Without it a plain image is taken pixel for pixel.
    Raises InputError for a file that is neither, a slide whose resolution is not known, or one coarser than `mpp`.
    """
    import openslide

    if not path.is_file():
        raise MissingError(f"no slide at {path}")
    if openslide.OpenSlide.detect_format(path) is None:
        if path.suffix.lower() in (".tif", ".tiff"):
            if image_mpp is None and _is_image(path):
                raise InputError(
                    f"{path} is no slide that OpenSlide knows, but an image; give its microns per pixel with --image_mpp"
                )
        elif path.suffix.lower() in SLIDE_SUFFIXES:
            raise InputError(
                f"{path} cannot be opened as a slide: it is damaged, incomplete or no slide; copy it again"
            )
        return PlainImage(path, mpp, image_mpp)
    return PyramidSlide(path, mpp, image_mpp)


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return False


class PlainImage:
    """An image that Pillow reads, held in memory."""

    told = True

    def __init__(self, path: Path, mpp: float = 0.0, image_mpp: float | None = None):
        if not path.is_file():
            raise MissingError(f"no image at {path}")
        try:
            image = Image.open(path)
            image.load()
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{path} is too large to be read as an image; make a pyramidal TIFF of it, a slide"
            ) from error
        except (OSError, SyntaxError) as error:
            raise InputError(f"{path} is neither a slide nor an image that can be read ({error})") from error
        if image.mode != "RGB":
            raise InputError(f"{path} is a {image.mode} image, expected RGB: convert it first")
        self._image, self.note, self.factor = image, "native", 1.0
        if image_mpp is not None:
            self.factor = factor = shrink_factor(path, image_mpp, mpp)
            self.note = f"{image_mpp * factor:.3g} um/px"
            if factor != 1:
                size = (max(1, int(image.width / factor)), max(1, int(image.height / factor)))
                self._image = image.resize(
                    size, Image.Resampling.LANCZOS, box=(0, 0, size[0] * factor, size[1] * factor)
                )
        self.width, self.height = self._image.size

    def read(self, x: int, y: int, size: int) -> Image.Image:
        box = (max(x, 0), max(y, 0), min(x + size, self.width), min(y + size, self.height))
        part = self._image.crop(box)
        if part.size == (size, size):
            return part
        square = Image.new("RGB", (size, size), "white")
        square.paste(part, (box[0] - x, box[1] - y))
        return square

    def thumbnail(self, side: int) -> Image.Image:
        small = self._image.copy()
        small.thumbnail((side, side), Image.Resampling.BOX)
        return small

    def close(self) -> None:
        self._image.close()


class PyramidSlide:
    """A slide that OpenSlide reads: several levels, of which the nearest finer one is resampled."""

    def __init__(self, path: Path, mpp: float, own_mpp: float | None = None):
        import openslide

        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise InputError(f"{path} cannot be opened ({error})") from error
        self._path = path
        self.told = not _says_mpp(self._slide.properties)
        native = slide_mpp(path, self._slide.properties, own_mpp)
        wanted = shrink_factor(path, native, mpp)
        # The coarsest level that is not coarser than wanted, give or take what counts as the same.
        self._level = max(
            i
            for i, down in enumerate(self._slide.level_downsamples)
            if i == 0 or down <= wanted * (1 + SAME_RESOLUTION)
        )
        level_factor = self._slide.level_downsamples[self._level]
        self._per_level = _unless_same(wanted / level_factor)  # level pixels per patch pixel
        self.factor = self._per_level * level_factor
        level_width, level_height = self._slide.level_dimensions[self._level]
        self.width, self.height = int(level_width / self._per_level), int(level_height / self._per_level)
        self.note = f"{native * self.factor:.3g} um/px"

    def read(self, x: int, y: int, size: int) -> Image.Image:
        corner = (round(x * self.factor), round(y * self.factor))
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

        width, height = self._slide.level_dimensions[-1]
        try:
            if width * height <= LARGE_LEVEL:
                return self._slide.get_thumbnail((side, side)).convert("RGB")
            return self._thumbnail_in_strips(side, width, height)
        except openslide.OpenSlideError as error:
            raise InputError(f"{self._path} cannot be read ({error})") from error

    def _thumbnail_in_strips(self, side: int, width: int, height: int) -> Image.Image:
        """Of a slide without a small level: strips of the smallest one, shrunk one by one; whole, it might fill the memory."""
        factor = max(width, height) / side
        small = Image.new("RGB", (max(1, round(width / factor)), max(1, round(height / factor))))
        down, level = self._slide.level_downsamples[-1], self._slide.level_count - 1
        rows = max(1, int(LARGE_LEVEL / width / factor))  # of the small picture, in a strip
        for top in range(0, small.height, rows):
            bottom = min(top + rows, small.height)
            first, last = round(top * height / small.height), round(bottom * height / small.height)
            strip = self._slide.read_region((0, round(first * down)), level, (width, last - first))
            small.paste(_on_white(strip).resize((small.width, bottom - top), Image.Resampling.BOX), (0, top))
        return small

    def close(self) -> None:
        self._slide.close()


def slide_mpp(path: Path, properties: Mapping[str, str], told: float | None = None) -> float:
    """Microns per pixel of a slide's finest level: what the file says, else what the user told.

    Raises InputError when neither says, or the pixels are not square.
    """
    if not _says_mpp(properties):
        if told is None:
            raise InputError(
                f"{path} does not say its resolution (openslide.mpp-x and -y); give its microns per pixel with --image_mpp"
            )
        return told
    across, down = float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])
    if not _same(across / down):
        raise InputError(f"{path} has pixels of {across:.4g} x {down:.4g} um; only square ones can be used")
    return (across + down) / 2


def _says_mpp(properties: Mapping[str, str]) -> bool:
    try:
        return float(properties["openslide.mpp-x"]) > 0 and float(properties["openslide.mpp-y"]) > 0
    except (KeyError, ValueError):
        return False


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


def find_slides(paths: Iterable[Path]) -> list[Path]:
    """The files named, those that .txt lists name, and the slides and images in and below the folders named.

    In natural order. Raises MissingError for a path that is not there and a folder or list without slides, InputError
    when two slides have one name.
    """
    by_name: dict[str, Path] = {}
    for slide in (slide for path in paths for slide in _slides_at(path)):
        other = by_name.setdefault(slide.stem, slide)
        if other != slide:
            raise InputError(
                f"{other} and {slide} would share the folder {slide.stem}; extract them to different cohorts"
            )
    return list(by_name.values())


def _slides_at(path: Path) -> list[Path]:
    if path.suffix == ".txt" and path.is_file():
        return _listed(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingError(f"--slides: nothing at {path}")
    known = SLIDE_SUFFIXES | IMAGE_SUFFIXES
    found = [
        Path(folder) / name
        for folder, _, names in os.walk(path)
        for name in _one_a_slide([name for name in names if not name.startswith(".")])
        if Path(name).suffix.lower() in known
    ]
    if not found:
        raise MissingError(f"--slides: no slide or image in {path}; known are {', '.join(sorted(known))}")
    return sorted(found, key=lambda file: natural_key(file.as_posix()))


def _one_a_slide(names: list[str]) -> list[str]:
    """Of the files in one folder those that stand for a slide: a DICOM slide has a file for each of its levels, of which
    OpenSlide finds the others; JPEGs beside a .vms or .vmu are its tiles."""
    kinds = {name: Path(name).suffix.lower() for name in names}
    dicom = sorted(name for name in names if kinds[name] == ".dcm")[1:]
    tiles = {".jpg", ".jpeg"} if {".vms", ".vmu"} & set(kinds.values()) else set()
    return [name for name in names if name not in dicom and kinds[name] not in tiles]


def _listed(file: Path) -> list[Path]:
    """The paths in a text file, one a line, relative to the current folder; each is a slide or image."""
    paths = [Path(line.strip()) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not paths:
        raise MissingError(f"--slides: {file} lists nothing; expected one path a line")
    return paths
