"""Regions of slides and images: read window by window, and embedded.

Letters: D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from diffusion.data.slides.reader import Slide
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError

LARGEST_AREA = 2**28  # pixels that are held at once: 0.8 GB


class Region(NamedTuple):
    """A part of a slide, whose top left corner is pixel x, y."""

    slide: Slide
    x: int
    y: int

    def window(self, row: int, column: int) -> np.ndarray:
        """Read one of its 256-pixel windows, uint8 (256, 256, 3)."""
        return np.asarray(self.slide.read(self.x + WINDOW * column, self.y + WINDOW * row, WINDOW))


def embed_region(
    region: Region, rows: int, columns: int, embedder: PatchEmbedder, batch_size: int = 64
) -> torch.Tensor:
    """Return the tokens (rows, columns, D) of a region's windows, float32 on the CPU."""
    places = list(product(range(rows), range(columns)))
    tokens = []
    for first in range(0, len(places), batch_size):
        windows = np.stack([region.window(*place) for place in places[first : first + batch_size]])
        tokens.append(embedder.embed(torch.from_numpy(windows).permute(0, 3, 1, 2)).cpu())
    return torch.cat(tokens).unflatten(0, (rows, columns))


def region_bands(region: Region, rows: int, columns: int) -> Iterator[torch.Tensor]:
    """Yield the pixels of a region from the top down, in bands (3, 256, 256 * columns), uint8."""
    for row in range(rows):
        band = np.concatenate([region.window(row, column) for column in range(columns)], axis=1)
        yield torch.from_numpy(band).permute(2, 0, 1)


def read_pixels(region: Region, rows: int, columns: int) -> np.ndarray:
    """Read the pixels of a region, uint8 (256 R, 256 K, 3)."""
    return torch.cat(list(region_bands(region, rows, columns)), dim=1).permute(1, 2, 0).numpy()


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
    rows, columns = (-(-side // WINDOW) for side in (place.height, place.width))
    return read_pixels(Region(slide, place.left, place.top), rows, columns)[: place.height, : place.width], place


def check_area(name: str, width: int, height: int) -> None:
    """Raise InputError for a picture of more pixels than are held at once; name: for the message."""
    if width * height > LARGEST_AREA:
        raise InputError(
            f"{name} has {width} x {height} pixels, more than are edited at once, {LARGEST_AREA:,}; take a part of it"
        )
