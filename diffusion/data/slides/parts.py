"""Parts of slides and images, read as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.data.slides.reader import Slide
from diffusion.utils.errors import InputError

LARGEST_AREA = 2**28  # pixels that are held at once: 0.8 GB
SQUARE = 256  # pixels a side that are read at once


class Part(NamedTuple):
    """A part of a slide or image as it is read: its corner, in pixels of that resolution, and its size."""

    left: int
    top: int
    width: int
    height: int


def locate_part(slide: Slide, path: Path, part: tuple[int, int, int, int] | None) -> Part:
    """Return where a part of a slide is: left and top in pixels of the finest level, width and height as it is read; None: all of it.

    Raises InputError for one that reaches beyond the slide.
    """
    x, y, width, height = part or (0, 0, slide.width, slide.height)
    left, top = (round(each / slide.factor) for each in (x, y))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > slide.width or top + height > slide.height:
        raise InputError(
            f"{path} has {slide.width} x {slide.height} pixels ({slide.note}): {width} x {height} from {left}, {top} on are "
            "not a part of it"
        )
    return Part(left, top, width, height)


def read_part(slide: Slide, path: Path, part: tuple[int, int, int, int] | None) -> tuple[np.ndarray, Part]:
    """Read a part of an opened slide or image, as `locate_part` takes it: uint8 (H, W, 3), and where it is.

    Raises InputError for a part beyond the slide, and for one of more than 268 million pixels.
    """
    place = locate_part(slide, path, part)
    check_area(str(path), place.width, place.height)
    pixels = np.empty((place.height, place.width, 3), np.uint8)
    for top in range(0, place.height, SQUARE):
        for left in range(0, place.width, SQUARE):
            square = np.asarray(slide.read(place.left + left, place.top + top, SQUARE))
            part_of_it = pixels[top : top + SQUARE, left : left + SQUARE]
            part_of_it[:] = square[: part_of_it.shape[0], : part_of_it.shape[1]]
    return pixels, place


def check_area(name: str, width: int, height: int) -> None:
    """Raise InputError for a picture of more pixels than are held at once; name: for the message."""
    if width * height > LARGEST_AREA:
        raise InputError(
            f"{name} has {width} x {height} pixels, more than are edited at once, {LARGEST_AREA:,}; take a part of it"
        )
