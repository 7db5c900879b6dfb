"""Image files: large ones are written band by band and are never in memory as a whole; each says how it was made.

Images larger than what viewers of PNG open are TIFFs of tiles in several resolutions, which OpenSlide opens.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from diffusion.formats import PICTURE_NOTE
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write

LARGEST_PNG = 8192  # pixels a side; larger pictures are TIFFs
TILE = 512  # pixels a side of a TIFF's tiles
SMALLEST_LEVEL = 1024  # pixels of the longer side at which the pyramid ends
BIG_TIFF = 2**32 - 2**25  # bytes from which a TIFF needs 64-bit offsets
GAP, LABEL = 8, 22  # pixels between the images of a grid, and for a label above each


def save_image(path: Path, pixels: torch.Tensor, note: dict[str, Any], **options: Any) -> None:
    """Write an image of uint8 pixels (3, H, W) atomically, as PNG or JPEG by its suffix.

    note: kept in the file as JSON: text under `pixcell` of a PNG, comment of a JPEG. options: Pillow's.
    Raises InputError for another suffix.
    """
    kind = image_kind(path)
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text(PICTURE_NOTE, json.dumps(note))
        options = {**options, "pnginfo": info}
    else:
        options = {"quality": 95, "subsampling": 0, **options, "comment": json.dumps(note)}
    with atomic_write(path) as temporary:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(temporary, kind, **options)


def read_note(path: Path) -> dict[str, Any]:
    """Return the note of a PNG or TIFF that `write_large_image` wrote; none of a file of another program, or of one that is damaged."""
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                text = image.info.get(PICTURE_NOTE, "{}")
        else:
            from tifffile import TiffFile

            with TiffFile(path) as tiff:
                text = tiff.pages.first.description
        note = json.loads(text)
    except Exception:  # decoders raise nearly anything
        return {}
    return note if isinstance(note, dict) else {}


def choose_extension(height: int, width: int, format: str) -> str:
    """Return png or tiff; format: one of these, or auto, which is tiff, a pyramid, for what viewers of PNG do not open."""
    large = max(height, width) > LARGEST_PNG
    return ("tiff" if large else "png") if format == "auto" else format


def find_picture(folder: Path, name: str, format: str) -> Path | None:
    """Return the picture of a name in a folder, if it is there; format: as `choose_extension` takes it."""
    endings = ("png", "tiff") if format == "auto" else (format,)
    return next((path for ending in endings if (path := folder / f"{name}.{ending}").is_file()), None)


def image_kind(path: Path) -> str:
    """Return PNG or JPEG, as Pillow names formats. Raises InputError for another suffix."""
    kinds = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if path.suffix.lower() not in kinds:
        raise InputError(f"{path}: pictures are written as {', '.join(kinds)}; name such a file")
    return kinds[path.suffix.lower()]


def labelled_grid(rows: Sequence[Sequence[tuple[str, torch.Tensor]]]) -> torch.Tensor:
    """Return one image, uint8 (3, H, W), of rows of images (3, S, S), each below its label."""
    side = rows[0][0][1].shape[1]
    step, line = side + GAP, LABEL + side + GAP
    sheet = Image.new("RGB", (step * max(map(len, rows)) + GAP, line * len(rows) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for r, row in enumerate(rows):
        for c, (label, pixels) in enumerate(row):
            draw.text((GAP + c * step, GAP + r * line), shorten_label(label, font, side), fill="black", font=font)
            sheet.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (GAP + c * step, GAP + r * line + LABEL))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)


def shorten_label(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shorten a label to a width in pixels, from its start: labels differ in their ends."""
    while font.getlength(label) > width:
        label = f"…{label[2:]}"
    return label


def write_large_image(
    path: Path, bands: Iterable[torch.Tensor], height: int, width: int, mpp: float, note: dict[str, Any]
) -> None:
    """Write a large image atomically, as .png or, with any other suffix, as a pyramidal TIFF.

    bands: uint8 (3, rows, width) from the top down, of which one is in memory at a time. mpp: microns per pixel, stored
    in a TIFF.
    """
    with atomic_write(path) as temporary:
        rows = (np.ascontiguousarray(band.permute(1, 2, 0).numpy()) for band in bands)
        if path.suffix == ".png":
            _write_png(temporary, rows, height, width, note)
        else:
            _write_tiff(temporary, rows, height, width, mpp, note)


def _write_png(path: Path, bands: Iterable[np.ndarray], height: int, width: int, note: dict[str, Any]) -> None:
    """Write a PNG row by row (W3C's specification, sections 5 and 9): Pillow needs the whole image in memory."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))
        file.write(chunk(b"tEXt", PICTURE_NOTE.encode() + b"\0" + json.dumps(note).encode("ascii")))
        packer = zlib.compressobj(3)
        for band in bands:
            lines = np.empty((len(band), 1 + 3 * width), dtype=np.uint8)
            lines[:, 0] = 1  # filter `Sub`: every value less that of the pixel to its left
            lines[:, 1:4] = band[:, 0]
            np.subtract(band[:, 1:].reshape(len(band), -1), band[:, :-1].reshape(len(band), -1), out=lines[:, 4:])
            file.write(chunk(b"IDAT", packer.compress(lines.data)))
        file.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))


def _write_tiff(
    path: Path, bands: Iterable[np.ndarray], height: int, width: int, mpp: float, note: dict[str, Any]
) -> None:
    """Write a lossless TIFF in tiles, each level half the size of the one before.

    Its tiles are not as wide as the picture, so the bands are gathered in a nameless file beside it, which the system
    may drop from memory: 4 bytes of disk a pixel.
    """
    from tifffile import TiffWriter

    settings = {"photometric": "rgb", "compression": "deflate", "tile": (TILE, TILE), "metadata": None}
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        _reserve(scratch, 0, 3 * height * width)
        pixels, top = np.memmap(scratch, np.uint8, "r+", shape=(height, width, 3)), 0
        for band in bands:
            pixels[top : top + len(band)] = band
            top += len(band)
        description, level = json.dumps(note), 0
        with TiffWriter(path, bigtiff=pixels.nbytes * 4 / 3 > BIG_TIFF) as tiff:
            while True:
                per_cm = 1e4 / mpp / 2**level
                tiff.write(
                    _tiles(pixels), shape=pixels.shape, dtype=pixels.dtype, resolution=(per_cm, per_cm),
                    resolutionunit="CENTIMETER", subfiletype=1 if level else 0, description=description, **settings,
                )  # fmt: skip
                if max(pixels.shape) <= SMALLEST_LEVEL:
                    return
                pixels, level, description = _halve(pixels, scratch), level + 1, None


def _reserve(scratch: IO[bytes], start: int, size: int) -> None:
    """Reserve disk space for a part of a file before it is mapped: without, writing to a mapped page ends the process.

    Raises OSError when the disk is full.
    """
    scratch.truncate(start + size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(scratch.fileno(), start, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # of file systems without
                raise


def _tiles(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the tiles of a level, row by row; those at its ends are smaller."""
    for top in range(0, pixels.shape[0], TILE):
        for left in range(0, pixels.shape[1], TILE):
            yield np.ascontiguousarray(pixels[top : top + TILE, left : left + TILE])


def _halve(pixels: np.ndarray, scratch: IO[bytes]) -> np.ndarray:
    """Return means of 2 x 2 pixels, in a part of the scratch file that no earlier level uses."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    end = scratch.seek(0, 2)
    _reserve(scratch, end, 3 * height * width)
    half = np.memmap(scratch, np.uint8, "r+", offset=end, shape=(height, width, 3))
    for top in range(0, height, TILE):
        rows = min(TILE, height - top)
        part = pixels[2 * top : 2 * (top + rows), : 2 * width].reshape(rows, 2, width, 2, 3)
        half[top : top + rows] = (part.sum(axis=(1, 3), dtype=np.uint16) + 2) // 4
    return half
