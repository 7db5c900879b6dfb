"""The pictures of a studio: slides and images of the folders that it was given, and uploads, known to the page by number alone."""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from PIL import Image, ImageOps, PngImagePlugin

from diffusion.data.slides.discovery import list_slides
from diffusion.data.slides.parts import Part, locate_part, read_part
from diffusion.data.slides.reader import Slide, open_any
from diffusion.formats import PICTURE_NOTE
from diffusion.studio.tiles import TILE, Zoom, open_zoom
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import expand_path, read_lines

TILE_QUALITY = 90  # of JPEG
UPLOAD_BYTES, UPLOAD_PIXELS = 64 * 2**20, 64_000_000  # of one picture, at most
UPLOAD_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP")
UPLOAD_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1")
UPLOADS = 500  # that are kept, at most
OPENED = 8  # pictures that are kept open


@dataclass(frozen=True)
class Shown:
    """A picture as the page sees it. width, height: at the resolution that it is read at; factor: finest pixels to one of these."""

    number: str
    name: str
    width: int
    height: int
    factor: float
    note: str


class Resolution(TypedDict):
    """How a picture is read, as the options of the commands that have these names."""

    mpp: float
    image_mpp: float | None


@dataclass
class PictureShelf:
    """Pictures by number. paths: what was named, below which alone files are opened.

    uploads: the folder of what is uploaded. left_out: folders whose pictures are not shown, those of results.
    mpp, image_mpp: as `open_slide` takes them; uploads are taken pixel for pixel.
    """

    paths: Sequence[Path]
    uploads: Path
    mpp: float
    image_mpp: float | None = None
    left_out: Sequence[Path] = ()
    refused: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self):
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._files: dict[str, tuple[str, Path]] = {}
        self._uploaded: set[str] = set()
        self._shown: dict[str, Shown] = {}
        self._zooms: dict[str, Zoom] = {}
        if self.paths:
            found, self.refused = list_slides(self.paths)
            roots = [root.resolve() for path in self.paths for root in named_paths(path)]
            own = {folder.resolve() for folder in (self.uploads, *self.left_out)}
            found = [(name, path) for name, path in found if path in self.paths or not own & {*path.resolve().parents}]
            several = {name for name, count in Counter(name for name, _ in found).items() if count > 1}
            for name, path in found:
                place = path.resolve()
                if any(place == root or root in place.parents for root in roots):
                    shown = f"{name} ({path.parent.name}/{path.name})" if name in several else name
                    self._files[number_of(str(place))] = (shown, path.absolute())
                else:
                    self.refused[path] = f"{path} is a link out of the folders that were named: name its target"
        if self.uploads.is_dir():
            for path in sorted(self.uploads.glob("*.png")):
                if not path.is_symlink():
                    self._add_upload(path)

    def _add_upload(self, path: Path) -> str:
        number, shown = number_of(str(path.resolve())), re.sub(r"_[0-9a-f]{12}$", "", path.stem)
        others = {name for other, (name, _) in list(self._files.items()) if other != number}
        self._files[number] = (path.stem if shown in others else shown, path.absolute())
        self._uploaded.add(number)
        return number

    def names(self) -> list[dict[str, Any]]:
        """Return what `describe` does of every picture."""
        return [self.describe(number) for number in list(self._files)]

    def describe(self, number: str) -> dict[str, Any]:
        """Return number and name of a picture, and whether it can be downloaded: what is kept here can."""
        return {"number": number, "name": self._files[number][0], "download": number in self._uploaded}

    def path(self, number: str) -> Path:
        """Return the file of a picture. Raises MissingError for a number that is not known."""
        if number not in self._files:
            raise MissingError(f"no picture {number[:40]!r}; reload the page")
        return self._files[number][1]

    def upload_path(self, number: str) -> Path:
        """Return the file of an upload. Raises MissingError for another picture, whose file is the user's own."""
        path = self.path(number)
        if number not in self._uploaded or path.is_symlink() or not path.is_file():
            raise MissingError("only uploads, and pictures with results in them, can be downloaded")
        return path

    def resolution(self, number: str) -> Resolution:
        """Return how a picture is read; uploads are taken pixel for pixel."""
        return {"mpp": self.mpp, "image_mpp": None if number in self._uploaded else self.image_mpp}

    def read_from(self, number: str) -> closing[Slide]:
        """Open a picture at the resolution that it is read at, to be closed at the end of a `with`. Raises MissingError, InputError."""
        return open_any(self.path(number), **self.resolution(number))

    def show(self, number: str) -> Shown:
        """Return what a page is told of a picture. Raises MissingError, InputError for one that cannot be opened."""
        self.path(number)
        if number not in self._shown:
            with self.read_from(number) as slide:
                name = self._files[number][0]
                self._shown[number] = Shown(number, name, slide.width, slide.height, slide.factor, slide.note)
        return self._shown[number]

    def open(self, number: str) -> Zoom:
        """Return a picture's tiles, kept open. Raises MissingError, InputError."""
        path = self.path(number)
        with self._lock:
            if number not in self._zooms:
                while len(self._zooms) >= OPENED:
                    self._zooms.pop(next(iter(self._zooms)))
                self._zooms[number] = open_zoom(path)
            self._zooms[number] = self._zooms.pop(number)  # the last to be given up
            return self._zooms[number]

    def tile(self, number: str, level: int, column: int, row: int) -> bytes:
        """Return a tile as JPEG, at the ends of the picture as PNG. level: 0 is the finest, each further one half of it.

        Raises MissingError, InputError.
        """
        zoom = self.open(number)
        if level >= len(zoom.levels):
            raise MissingError(f"no level {level}")
        width, height = zoom.levels[level]
        if not (0 <= TILE * column < width and 0 <= TILE * row < height):
            raise MissingError(f"no tile {column}, {row} of level {level}")
        try:
            tile = zoom.read(level, column, row)
        except InputError:
            with self._lock:  # a slide stays in its error: it is opened anew the next time
                self._zooms.pop(number, None)
            raise
        buffer = io.BytesIO()
        if tile.size == (TILE, TILE):
            tile.save(buffer, "JPEG", quality=TILE_QUALITY)
        else:  # at the ends of the picture, which a viewer would stretch: nothing is beyond
            whole = Image.new("RGBA", (TILE, TILE))
            whole.paste(tile)
            whole.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def levels(self, number: str) -> list[tuple[int, int]]:
        """Return width and height of the levels in pixels, the finest first. Raises MissingError, InputError."""
        return self.open(number).levels

    def upload(self, content: bytes, name: str) -> str:
        """Keep an image that was uploaded, as a PNG of its content's name; return its number. Raises InputError.

        It is decoded here, by the formats that are known, and written anew: nothing of the file itself is kept.
        """
        if len(content) > UPLOAD_BYTES:
            raise InputError(f"an upload of more than {UPLOAD_BYTES >> 20} MB; name it when the studio is started")
        image = decode_upload(content)
        return self._keep(image, PurePosixPath(name.replace("\\", "/")).stem, hashlib.sha256(content).hexdigest())

    def put_into(self, number: str, part: tuple[int, int, int, int], result: Path) -> tuple[str, Part]:
        """Keep a copy of a picture in which a result stands in the place of the part that it was made of.

        Returns the copy's number, and the place in it.
        The copy has the result's note. Raises MissingError, InputError for a result of another size than the part, and for a picture of
        more pixels than an upload may have.
        """
        with Image.open(result) as image:
            pasted, note = image.convert("RGB"), image.info.get(PICTURE_NOTE)
        with self.read_from(number) as slide:
            place = locate_part(slide, self.path(number), part)
            if pasted.size != (place.width, place.height):
                raise InputError(
                    f"a result of {pasted.width} x {pasted.height} pixels does not fit into {place.width} x {place.height}"
                )
            if slide.width * slide.height > UPLOAD_PIXELS:
                raise InputError(
                    f"the picture has {slide.width} x {slide.height} pixels: copies are kept of at most {UPLOAD_PIXELS:,}; "
                    "download the result itself"
                )
            copy = Image.fromarray(read_part(slide, self.path(number), None)[0])
        copy.paste(pasted, (place.left, place.top))
        digest = hashlib.sha256(copy.tobytes()).hexdigest()
        name = re.sub(r"_edited_[0-9]+$", "", self._files[number][0])  # of a copy of a copy, too
        count = sum(
            1 for shown, _ in list(self._files.values()) if re.fullmatch(rf"{re.escape(name)}_edited_[0-9]+", shown)
        )
        return self._keep(copy, f"{name}_edited_{count + 1}", digest, note), place

    def _keep(self, image: Image.Image, name: str, digest: str, note: str | None = None) -> str:
        """Write an image among the uploads, once for a digest of its content; return its number. Raises InputError where they are full."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60]
        path = self.uploads / f"{plain or 'image'}_{digest[:12]}.png"
        self.uploads.mkdir(parents=True, exist_ok=True)
        with self._writing:  # two pages may bring one image at a time
            if same := next(self.uploads.glob(f"*_{digest[:12]}.png"), None):
                return self._add_upload(same)
            if sum(1 for _ in self.uploads.glob("*.png")) >= UPLOADS:
                raise InputError(f"{UPLOADS} uploads are kept already; delete some in {self.uploads.name}")
            info = PngImagePlugin.PngInfo()
            if note is not None:
                info.add_text(PICTURE_NOTE, note)
            with atomic_write(path) as temporary:
                image.save(temporary, format="PNG", compress_level=3, pnginfo=info)
            return self._add_upload(path)


def named_paths(path: Path) -> list[Path]:
    """Return what a path that was named stands for: itself, or what a list names."""
    if path.suffix.lower() != ".txt" or not path.is_file():
        return [path]
    return [Path(expand_path(line)) for line in read_lines(path) if not line.startswith("#")]


def decode_upload(content: bytes) -> Image.Image:
    """Return the RGB image of an upload, turned as its EXIF says. Raises InputError for what is none of a known format."""
    try:
        with Image.open(io.BytesIO(content), formats=UPLOAD_FORMATS) as image:
            width, height = image.size
            if width * height > UPLOAD_PIXELS or min(width, height) < 1:
                raise InputError(
                    f"an upload of {width} x {height} pixels: expected at most {UPLOAD_PIXELS:,}; name it when the studio is started"
                )
            if image.mode not in UPLOAD_MODES:
                raise InputError(f"an upload of the mode {image.mode}: expected RGB; convert it first")
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything when a file is broken
        raise InputError(f"the upload is no image of {', '.join(UPLOAD_FORMATS)} ({type(error).__name__})") from None


def number_of(text: str) -> str:
    """Return a number that stands for a text, 16 letters of hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
