"""Slides and plain images, opened so that they read at one resolution.

Coordinates here are pixels at that resolution unless a name says otherwise. A further format is one more class with the
interface of Slide, which open_slide chooses, and its suffix in SLIDE_SUFFIXES.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Protocol

from PIL import Image

from diffusion.data.images import open_image
from diffusion.data.slides.resolution import RESOLUTION_TOLERANCE, override_note, shrink_factor, slide_mpp, snap_ratio
from diffusion.utils.content import recognise_placeholder
from diffusion.utils.errors import InputError, MissingError

SLIDE_SUFFIXES = frozenset(
    (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm")
)
PIXEL_FOR_PIXEL = "native"  # what is noted of an image that does not say its resolution
MAX_LEVEL_PIXELS = 64_000_000  # pixels of a level that is not read at once, 256 MB


class Slide(Protocol):
    """A picture of tissue at the target resolution."""

    width: int
    height: int
    note: str  # which resolution was read, in words
    mpp_given: bool  # whether the resolution is the user's, not the file's
    factor: float  # pixels of the file's finest level to one here, a side

    def read(self, x: float, y: float, size: int) -> Image.Image:
        """Read the RGB square with top-left pixel x, y; beyond the slide it is white, as glass is.

        A part of a pixel counts where the slide has finer ones.
        """
        ...

    def thumbnail(self, side: int) -> Image.Image:
        """Return the slide in RGB, its longest side at most `side` pixels."""
        ...

    def close(self) -> None:
        """Close the file."""


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
                    f"{path} is no slide that OpenSlide knows, but an image; give its microns per pixel with --image-mpp"
                )
        elif path.suffix.lower() in SLIDE_SUFFIXES:
            reason = recognise_placeholder(path) or (
                "cannot be opened as a slide: it is damaged, incomplete or no slide; copy it again if it opens where it came from"
            )
            raise InputError(f"{path} {reason}")
        return PlainImage(path, mpp, image_mpp)
    return PyramidSlide(path, mpp, image_mpp)


def open_any(path: Path, mpp: float, image_mpp: float | None = None) -> closing[Slide]:
    """Open a slide or an image, to be closed at the end of a `with`; images of other suffixes than slides' need no OpenSlide.

    Raises as `open_slide` does.
    """
    is_slide = path.suffix.lower() in SLIDE_SUFFIXES
    return closing(open_slide(path, mpp, image_mpp) if is_slide else PlainImage(path, mpp, image_mpp))


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # decoders raise nearly anything when a file is broken
        return False


class PlainImage:
    """An image that Pillow reads, held in memory."""

    mpp_given = True

    def __init__(self, path: Path, mpp: float = 0.0, image_mpp: float | None = None):
        image = open_image(
            path,
            fault="is neither a slide nor an image that can be read",
            too_large="make a pyramidal TIFF of it, a slide",
        )
        self._hold(image, str(path))
        if image_mpp is not None:
            self.factor = factor = shrink_factor(path, image_mpp, mpp)
            self.note = f"{image_mpp * factor:.3g} um/px"
            if factor != 1:
                size = (max(1, int(image.width / factor)), max(1, int(image.height / factor)))
                self._image = image.resize(
                    size, Image.Resampling.LANCZOS, box=(0, 0, size[0] * factor, size[1] * factor)
                )
            self.width, self.height = self._image.size

    @classmethod
    def from_image(cls, image: Image.Image, name: str = "the image") -> PlainImage:
        """Take an image that is in memory, pixel for pixel; name: for errors. Raises InputError unless it is RGB."""
        plain = cls.__new__(cls)
        plain._hold(image, name)
        return plain

    def _hold(self, image: Image.Image, name: str) -> None:
        if image.mode != "RGB":
            raise InputError(f"{name} is a {image.mode} image, expected RGB: convert it first")
        self._image, self.note, self.factor = image, PIXEL_FOR_PIXEL, 1.0
        self.width, self.height = image.size

    def read(self, x: float, y: float, size: int) -> Image.Image:
        x, y = round(x), round(y)
        left, top = min(max(x, 0), self.width), min(max(y, 0), self.height)
        box = (left, top, max(left, min(x + size, self.width)), max(top, min(y + size, self.height)))
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
        self.mpp_given = own_mpp is not None
        native = slide_mpp(path, self._slide.properties, own_mpp)
        wanted = shrink_factor(path, native, mpp)
        # The coarsest level that is not coarser than wanted, give or take what counts as the same.
        self._level = max(
            i
            for i, down in enumerate(self._slide.level_downsamples)
            if i == 0 or down <= wanted * (1 + RESOLUTION_TOLERANCE)
        )
        level_factor = self._slide.level_downsamples[self._level]
        self._per_level = snap_ratio(wanted / level_factor)  # level pixels per patch pixel
        self.factor = self._per_level * level_factor
        level_width, level_height = self._slide.level_dimensions[self._level]
        self.width, self.height = int(level_width / self._per_level), int(level_height / self._per_level)
        self.note = f"{native * self.factor:.3g} um/px{override_note(self._slide.properties, own_mpp)}"

    def read(self, x: float, y: float, size: int) -> Image.Image:
        corner = (round(x * self.factor), round(y * self.factor))
        side = round(size * self._per_level)
        region = self._read(corner, side)
        return region if side == size else region.resize((size, size), Image.Resampling.LANCZOS)

    def _read(self, corner: tuple[int, int], side: int) -> Image.Image:
        import openslide

        try:
            return _flatten_on_white(self._slide.read_region(corner, self._level, (side, side)))
        except openslide.OpenSlideError as error:
            raise InputError(f"{self._path} is broken at {corner} ({error})") from error

    def thumbnail(self, side: int) -> Image.Image:
        import openslide

        width, height = self._slide.level_dimensions[-1]
        try:
            if width * height <= MAX_LEVEL_PIXELS:
                return self._slide.get_thumbnail((side, side)).convert("RGB")
            return self._thumbnail_in_strips(side, width, height)
        except openslide.OpenSlideError as error:
            raise InputError(f"{self._path} cannot be read ({error})") from error

    def _thumbnail_in_strips(self, side: int, width: int, height: int) -> Image.Image:
        """Return the thumbnail of a slide without a small level, shrunk strip by strip: at once, it might fill the memory."""
        factor = max(width, height) / side
        small = Image.new("RGB", (max(1, round(width / factor)), max(1, round(height / factor))))
        down, level = self._slide.level_downsamples[-1], self._slide.level_count - 1
        rows = max(1, int(MAX_LEVEL_PIXELS / width / factor))  # of the small picture, in a strip
        for top in range(0, small.height, rows):
            bottom = min(top + rows, small.height)
            first, last = round(top * height / small.height), round(bottom * height / small.height)
            strip = self._slide.read_region((0, round(first * down)), level, (width, last - first))
            small.paste(_flatten_on_white(strip).resize((small.width, bottom - top), Image.Resampling.BOX), (0, top))
        return small

    def close(self) -> None:
        self._slide.close()


def _flatten_on_white(image: Image.Image) -> Image.Image:
    """Return RGB of RGBA; what the scanner left out is white, as glass is."""
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas
