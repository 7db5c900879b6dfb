"""Regions of slides and images: read window by window, and embedded.

Letters: D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from diffusion.data.slides.reader import Slide
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.formats import WINDOW


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
