"""Reading image files: the one place that opens them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from diffusion.utils.content import recognise_placeholder
from diffusion.utils.errors import InputError, MissingError


class ImageHeader(NamedTuple):
    """What the head of an image file says; its EXIF orientation may yet swap width and height."""

    width: int
    height: int
    mode: str


def open_image(
    path: Path,
    max_pixels: int | None = None,
    draft: int | None = None,
    fault: str = "is not a readable image",
    too_large: str = "make it smaller",
) -> Image.Image:
    """Read an image into memory, turned as its EXIF orientation says, as viewers show it.

    max_pixels: the largest image to read, instead of Pillow's limit; draft: pixels a side that are enough, which a JPEG
    is decoded to faster; fault: what to say of a file that is no image; too_large: what to do with one
    of too many pixels. Raises MissingError, or InputError for what cannot be read.
    """
    with _one_line_errors(path, fault, too_large), _size_limit(max_pixels), Image.open(path) as image:
        if draft is not None:
            image.draft("RGB", (draft, draft))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image
    raise AssertionError("errors end above")


def read_header(path: Path) -> ImageHeader:
    """Read the size and the mode of an image file without its pixels. Raises MissingError, InputError as `open_image`."""
    with _one_line_errors(path), Image.open(path) as image:
        return ImageHeader(image.width, image.height, image.mode)
    raise AssertionError("errors end above")


@contextlib.contextmanager
def _one_line_errors(
    path: Path, fault: str = "is not a readable image", too_large: str = "make it smaller"
) -> Iterator[None]:
    if not path.is_file():
        raise MissingError(f"{path} is a folder: name the files in it" if path.is_dir() else f"no image {path}")
    try:
        yield
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} is too large to be read as an image; {too_large} ({str(error).partition(',')[0]})"
        ) from None
    except Exception as error:  # decoders raise nearly anything when a file is broken
        reason = recognise_placeholder(path) or f"{fault} ({error})"
        raise InputError(f"{path} {reason}") from None


@contextlib.contextmanager
def _size_limit(max_pixels: int | None) -> Iterator[None]:
    """Set the number of pixels from which Pillow refuses images, or leave its own."""
    if max_pixels is None:
        yield
        return
    usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels // 2  # it refuses twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual
