"""Slides and plain images, opened so that they read at one resolution.

Coordinates here are pixels at that resolution unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image

from diffusion.data.images import open_image
from diffusion.utils.content import recognise_placeholder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.folders import SkippedEntries, walk_folders
from diffusion.utils.text import expand_path, is_utf8, printable_name, read_lines

SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm")
)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp"))
OTHER_SLIDES = frozenset(
    (".isyntax", ".qptiff", ".vsi", ".ets", ".lif", ".jp2", ".kfb", ".sdpc", ".btf", ".zip", ".gz", ".part")
)
MPP_OF_SCANNERS = (0.05, 20.0)  # um/px; what a file says beyond is a printer's resolution, or a guess
LARGE_LEVEL = 64_000_000  # pixels of a level that is not read at once, 256 MB
MPP_AT_1X = 10.0  # um/px times objective power: 0.5 at 20x, 0.25 at 40x
SAME_RESOLUTION = 0.05  # resolutions nearer than this are one: microscopes differ by as much, and resampling blurs


class Slide(Protocol):
    """A picture of tissue at the target resolution."""

    width: int
    height: int
    note: str  # which resolution was read, in words
    told: bool  # whether the resolution is the user's, not the file's
    factor: float  # pixels of the file's finest level to one here, a side

    def read(self, x: int, y: int, size: int) -> Image.Image:
        """The RGB square with top-left pixel x, y; beyond the slide it is white, as glass is."""

    def thumbnail(self, side: int) -> Image.Image:
        """The whole slide in RGB, its longest side at most `side` pixels."""

    def close(self) -> None: ...


def open_slide(path: Path, mpp: float, image_mpp: float | None = None) -> Slide:
    """Open a slide or plain image so that it reads at `mpp` microns per pixel.

    image_mpp: the file's own resolution, whatever it says itself. Without it a plain image is taken pixel for pixel.
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
            reason = recognise_placeholder(path) or (
                "cannot be opened as a slide: it is damaged, incomplete or no slide; copy it again if it opens where it came from"
            )
            raise InputError(f"{path} {reason}")
        return PlainImage(path, mpp, image_mpp)
    return PyramidSlide(path, mpp, image_mpp)


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # decoders raise nearly anything when a file is broken
        return False


class PlainImage:
    """An image that Pillow reads, held in memory."""

    told = True

    def __init__(self, path: Path, mpp: float = 0.0, image_mpp: float | None = None):
        image = open_image(
            path,
            fault="is neither a slide nor an image that can be read",
            too_large="make a pyramidal TIFF of it, a slide",
        )
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
        self.told = own_mpp is not None
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
        self.note = f"{native * self.factor:.3g} um/px{_overruled(self._slide.properties, own_mpp)}"

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


def slide_mpp(path: Path, properties: Mapping[str, str], given: float | None = None) -> float:
    """Return the microns per pixel of a slide's finest level: what the user gives, else what the file says.

    Raises InputError when neither is there, the file says what no scanner has, or the pixels are not square.
    """
    if given is not None:
        return given
    stated = stated_mpp(properties)
    if stated is None:
        raise InputError(f"{path} {_instead(properties)}; give its microns per pixel with --image_mpp")
    across, down = stated
    if not _same(across / down):
        raise InputError(
            f"{path} has pixels of {across:.4g} x {down:.4g} um, and only square ones can be used; if that is not so, give "
            "their microns with --image_mpp"
        )
    return (across + down) / 2


def stated_mpp(properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Return the microns per pixel, across and down, that a file says; None without any that a scanner could have."""
    least, most = MPP_OF_SCANNERS
    stated = tuple(map(_number, (properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y"))))
    return stated if all(least <= each <= most for each in stated) else None


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _instead(properties: Mapping[str, str]) -> str:
    """Say what a file tells in place of a resolution that could be used: one of printers, the objective's power."""
    across, down, power = (
        _number(properties.get(f"openslide.{name}")) for name in ("mpp-x", "mpp-y", "objective-power")
    )
    said = "does not say its resolution (openslide.mpp-x and -y)"
    if across == across and down == down:
        value = f"{across:.4g}" if across == down else f"{across:.4g} x {down:.4g}"
        said = f"says that it has {value} um/px, which no scanner has"
    if 1 <= power <= 200:
        said += f"; its objective is said to be {power:g}x, which usually means {MPP_AT_1X / power:.3g} um/px"
    return said


def _overruled(properties: Mapping[str, str], given: float | None) -> str:
    """Say that a user's resolution stands in place of the file's, where they differ."""
    stated = stated_mpp(properties)
    if given is None or stated is None or _same(sum(stated) / 2 / given):
        return ""
    return f"; {given:.3g} um/px of the file by --image_mpp, it says {sum(stated) / 2:.3g}"


def shrink_factor(path: Path, native_mpp: float, mpp: float) -> float:
    """Return how many native pixels make one patch pixel; 1 when the two are nearly the same.

    Raises InputError when the file is coarser than wanted: enlarging it would invent detail.
    """
    factor = _unless_same(mpp / native_mpp)
    if factor < 1:
        raise InputError(
            f"{path} has {native_mpp:.4g} um/px, coarser than the {mpp:.4g} asked for, and enlarging would invent detail; "
            f"leave it out, give its true resolution with --image_mpp, or make coarser patches with --mpp {native_mpp:.4g}"
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


@dataclass
class FoundSlides:
    """The slides and images that a user names; refused: those that cannot be cut beside the others, and why."""

    paths: list[Path] = field(default_factory=list)
    refused: dict[Path, str] = field(default_factory=dict)


def find_slides(paths: Iterable[Path]) -> FoundSlides:
    """Find the files named, those that .txt lists name, and the slides and images in and below the folders named.

    In natural order. Of a folder, an image with the name of a slide beside it is the slide's label or overview, and left out; of
    other files of one name the first is taken and the others refused. Raises MissingError for a path that is not there and a
    folder or list without slides, InputError for a list that cannot be read.
    """
    skipped, found = SkippedEntries(), FoundSlides()
    taken: dict[str, Path] = {}
    for path in dict.fromkeys(slide for place in paths for slide in _slides_at(place, skipped)):
        if not is_utf8(str(path)):
            found.refused[path] = f"{printable_name(path)}: this name is not UTF-8; rename it"
        elif taken.setdefault(path.stem, path) != path:
            found.refused[path] = (
                f"{path} would share the folder {path.stem} with {taken[path.stem]}; extract it to another cohort"
            )
    skipped.report()
    found.paths = list(taken.values())
    return found


def _slides_at(path: Path, skipped: SkippedEntries) -> Iterator[Path]:
    if path.suffix.lower() == ".txt" and path.is_file():
        yield from _listed(path, skipped)
    elif path.is_file():
        yield path
    elif path.is_dir():
        yield from _slides_below(path, skipped)
    else:
        raise MissingError(f"--slides: nothing at {path}")


def _slides_below(root: Path, skipped: SkippedEntries) -> Iterator[Path]:
    known, empty = SLIDE_SUFFIXES | IMAGE_SUFFIXES, True
    for folder, names in walk_folders(root, skipped):
        for name in _one_a_slide(folder, names, skipped):
            if Path(name).suffix.lower() in known:
                empty = False
                yield folder / name
    if empty:
        skipped.report()
        raise MissingError(f"--slides: no slide or image in {root}; known are {', '.join(sorted(known))}")


def _one_a_slide(folder: Path, names: list[str], skipped: SkippedEntries) -> list[str]:
    """Return those of the files in one folder that stand for a slide.

    A DICOM slide has a file for each of its levels, of which OpenSlide finds the others; JPEGs beside a .vms or .vmu are its
    tiles; an image with the name of a slide is its label or overview.
    """
    kinds = {name: Path(name).suffix.lower() for name in names}
    dicom = sorted(name for name in names if kinds[name] == ".dcm")[1:]
    tiles = {".jpg", ".jpeg"} if {".vms", ".vmu"} & set(kinds.values()) else set()
    slides = {Path(name).stem for name in names if kinds[name] in SLIDE_SUFFIXES}
    beside = [name for name in names if kinds[name] in IMAGE_SUFFIXES - tiles and Path(name).stem in slides]
    for name in beside:
        skipped.add("images with the name of a slide beside them", folder / name)
    for name in names:
        if kinds[name] in OTHER_SLIDES:
            skipped.add("files that OpenSlide does not read", folder / name)
    return [name for name in names if name not in dicom and name not in beside and kinds[name] not in tiles]


def _listed(file: Path, skipped: SkippedEntries) -> Iterator[Path]:
    """Yield the paths in a text file, one a line, relative to the current folder; each is a slide, an image or a folder of them."""
    lines = [line for line in read_lines(file) if not line.startswith("#")]
    if not lines:
        raise MissingError(f"--slides: {file} lists nothing; expected one path a line")
    for line in lines:
        path = Path(expand_path(line) if line.startswith(("~", "$")) else line)
        if path.is_dir():
            yield from _slides_below(path, skipped)
        else:
            yield path
