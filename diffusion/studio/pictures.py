"""The pictures of a studio: slides and images of the folders that it was given, and uploads, known to the page by number alone."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion.data.images import open_image
from diffusion.data.slides.discovery import name_slides
from diffusion.data.slides.reader import SLIDE_SUFFIXES
from diffusion.generation.regions import open_any
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write

TILE = 256  # pixels a side of a tile
TILE_QUALITY = 90  # of JPEG
UPLOAD_BYTES, UPLOAD_PIXELS = 64 * 2**20, 64_000_000  # of one picture, at most
UPLOAD_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
OPENED = 8  # pictures that are kept open


@dataclass(frozen=True)
class Shown:
    """A picture as the page sees it. width, height: at the resolution that it is read at; factor: finest pixels to one of these."""

    number: str
    name: str
    path: Path
    width: int
    height: int
    factor: float
    note: str


@dataclass
class PictureShelf:
    """Pictures by number. folders: what was named, below which alone files are opened; uploads: the folder of what is uploaded.

    mpp, image_mpp: as `open_slide` takes them.
    """

    paths: Sequence[Path]
    uploads: Path
    mpp: float
    image_mpp: float | None = None
    refused: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self):
        self._lock = threading.Lock()
        self._files: dict[str, tuple[str, Path]] = {}
        self._shown: dict[str, Shown] = {}
        self._zooms: dict[str, Any] = {}
        if self.paths:
            found, self.refused = name_slides(self.paths)
            roots = [path.resolve() for path in self.paths]
            for name, path in found.items():
                place = path.resolve()
                if any(place == root or root in place.parents for root in roots):
                    self._files[number_of(str(place))] = (name, path.absolute())
                else:
                    self.refused[path] = f"{path} is a link out of the folders that were named: name its target"
        if self.uploads.is_dir():
            for path in sorted(self.uploads.glob("*.png")):
                if not path.is_symlink():
                    self._files[number_of(str(path.resolve()))] = (path.name, path.absolute())

    def __len__(self) -> int:
        return len(self._files)

    def names(self) -> list[dict[str, str]]:
        """Return number and name of every picture."""
        return [{"number": number, "name": name} for number, (name, _) in self._files.items()]

    def path(self, number: str) -> Path:
        """Return the file of a picture. Raises MissingError for a number that is not known."""
        if number not in self._files:
            raise MissingError(f"no picture {number[:40]!r}; reload the page")
        return self._files[number][1]

    def show(self, number: str) -> Shown:
        """Return what a page is told of a picture. Raises MissingError, InputError for one that cannot be opened."""
        path = self.path(number)
        if number not in self._shown:
            with open_any(path, self.mpp, self.image_mpp) as slide:
                name = self._files[number][0]
                self._shown[number] = Shown(number, name, path, slide.width, slide.height, slide.factor, slide.note)
        return self._shown[number]

    def zoom(self, number: str) -> Any:
        """Return the deep zoom of a picture, kept open. Raises MissingError, InputError."""
        with self._lock:
            if number in self._zooms:
                return self._zooms[number]
            path = self.path(number)
            import openslide
            from openslide.deepzoom import DeepZoomGenerator

            is_slide = path.suffix.lower() in SLIDE_SUFFIXES and openslide.OpenSlide.detect_format(path) is not None
            if is_slide:
                opened: Any = openslide.OpenSlide(path)
            else:
                image = open_image(path, fault="is neither a slide nor an image that can be read").convert("RGB")
                opened = openslide.ImageSlide(image)
            if len(self._zooms) >= OPENED:
                self._zooms.pop(next(iter(self._zooms)))
            self._zooms[number] = DeepZoomGenerator(opened, tile_size=TILE, overlap=0)
            return self._zooms[number]

    def tile(self, number: str, level: int, column: int, row: int) -> bytes:
        """Return a tile as JPEG. level: 0 is the finest, each further one half of it. Raises MissingError, InputError."""
        zoom = self.zoom(number)
        place = zoom.level_count - 1 - level
        if not 0 <= place < zoom.level_count:
            raise MissingError(f"no level {level}")
        columns, rows = zoom.level_tiles[place]
        if not (0 <= column < columns and 0 <= row < rows):
            raise MissingError(f"no tile {column}, {row} of level {level}")
        tile = zoom.get_tile(place, (column, row)).convert("RGB")
        if tile.size != (TILE, TILE):  # at the ends of the picture; a viewer would stretch it
            whole = Image.new("RGB", (TILE, TILE), "white")
            whole.paste(tile)
            tile = whole
        buffer = io.BytesIO()
        tile.save(buffer, "JPEG", quality=TILE_QUALITY)
        return buffer.getvalue()

    def levels(self, number: str) -> list[tuple[int, int]]:
        """Return width and height of the levels in pixels, the finest first. Raises MissingError, InputError."""
        return list(reversed(self.zoom(number).level_dimensions))

    def upload(self, content: bytes, name: str) -> str:
        """Keep an image that was uploaded, as a PNG of its content's name; return its number. Raises InputError.

        It is decoded here, by the formats that are known, and written anew: nothing of the file itself is kept.
        """
        if len(content) > UPLOAD_BYTES:
            raise InputError(f"an upload of more than {UPLOAD_BYTES >> 20} MB; name it when the studio is started")
        image = decode_upload(content)
        digest = hashlib.sha256(content).hexdigest()[:16]
        path = self.uploads / f"{digest}.png"
        self.uploads.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            image.save(temporary, format="PNG", compress_level=3)
        number = number_of(str(path.resolve()))
        plain = "".join(letter for letter in Path(name.replace("\\", "/")).name if letter.isprintable())[:80]
        self._files[number] = (plain or path.name, path.absolute())
        return number


def decode_upload(content: bytes) -> Image.Image:
    """Return the RGB image of an upload. Raises InputError for what is no image of a known format, or too large."""
    try:
        with Image.open(io.BytesIO(content), formats=UPLOAD_FORMATS) as image:
            width, height = image.size
            if width * height > UPLOAD_PIXELS or min(width, height) < 1:
                raise InputError(
                    f"an upload of {width} x {height} pixels: expected at most {UPLOAD_PIXELS:,}; name it when the studio is started"
                )
            image.load()
            return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything when a file is broken
        raise InputError(f"the upload is no image of {', '.join(UPLOAD_FORMATS)} ({type(error).__name__})") from None


def number_of(text: str) -> str:
    """Return a number that stands for a text, 16 letters of hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
