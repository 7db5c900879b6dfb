"""The parts that the features of a patch consist of: their names, shapes, and places in files.

A record is a mapping of part names to float16 arrays. Loose, every part is one .npy file a patch; packed, every part is one
data set of each shard. A store reads the parts of which it is given the file prefixes.

Every patch has latents and embeddings. Beside them there may be a mask of the image, or the latents of a control image.
A further part is one more entry of PARTS. Stores, packing and verification take it as soon as they are given its prefix;
what names the prefixes has to learn it: `part_prefixes` with its callers, which are data sets and command lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion.data.crops import CropBox, tokens_per_image
from diffusion.data.features.masks import read_mask
from diffusion.data.features.npy import Shape, read_array, read_rectangle
from diffusion.formats import LATENT_CHANNELS, LATENT_FACTOR, WINDOW

Record = dict[str, np.ndarray]  # the features of one patch, or of a crop of it, by part
CELLS = WINDOW // LATENT_FACTOR  # latent cells a side of a window


@dataclass(frozen=True)
class Part(ABC):
    """One part of a patch's features."""

    name: str  # in records and of the data set in shards
    setting: str  # the name of its file prefix in configs and packed.json
    label: str  # in messages

    @abstractmethod
    def shape(self, size: int) -> Shape:
        """Return its shape for an image of `size` pixels; None for a length that may be any."""

    def packed_shape(self, size: int, width: int) -> tuple[int, ...]:
        """Return its shape in a set in which the length that may be any is `width`."""
        return tuple(width if length is None else length for length in self.shape(size))

    def width_of(self, array: np.ndarray) -> int | None:
        """Return the length of an array that may be any; None for a part whose lengths all follow from the size."""
        free = [n for n, length in zip(array.shape, self.shape(WINDOW), strict=True) if length is None]
        return free[0] if free else None

    def is_there(self, path: Path) -> bool:
        """Tell whether a patch's file is there."""
        return path.is_file()

    @abstractmethod
    def chunk_shape(self, width: int) -> tuple[int, ...]:
        """Return the shape of one 256-pixel window of it, which packed sets store as one chunk."""

    @abstractmethod
    def window_places(self, box: CropBox, size: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yield, for each window of a crop, its offset in the array of a patch of `size` pixels and its place in the crop's."""

    @abstractmethod
    def read_file(self, path: Path, size: int, box: CropBox | None = None) -> np.ndarray:
        """Read it from the file of a patch of `size` pixels: a crop of it, or all. Raises as npy.read_array does."""


class Moments(Part):
    """Latents on the VAE's scale, (32, S/8, S/8): 16 channels of posterior mean, then 16 of posterior standard deviation."""

    def shape(self, size: int) -> tuple[int, int, int]:
        side = size // LATENT_FACTOR
        return 2 * LATENT_CHANNELS, side, side

    def chunk_shape(self, width: int) -> tuple[int, ...]:
        return 2 * LATENT_CHANNELS, CELLS, CELLS

    def window_places(self, box: CropBox, size: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        top, left = box.row * CELLS, box.column * CELLS
        for y in range(0, box.side * CELLS, CELLS):
            for x in range(0, box.side * CELLS, CELLS):
                yield (0, top + y, left + x), (slice(None), slice(y, y + CELLS), slice(x, x + CELLS))

    def read_file(self, path: Path, size: int, box: CropBox | None = None) -> np.ndarray:
        rows, columns = (slice(None), slice(None)) if box is None else box.slices(CELLS)
        return read_rectangle(path, self.shape(size), rows, columns)


class Tokens(Part):
    """Embeddings (n, D), one for each 256-pixel window, row-major."""

    def shape(self, size: int) -> Shape:
        return tokens_per_image(size), None

    def chunk_shape(self, width: int) -> tuple[int, ...]:
        return 1, width

    def window_places(self, box: CropBox, size: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        for place, window in enumerate(box.windows(size // WINDOW)):
            yield (window, 0), (slice(place, place + 1),)

    def read_file(self, path: Path, size: int, box: CropBox | None = None) -> np.ndarray:
        tokens = read_array(path, self.shape(size))
        return tokens if box is None else tokens[box.windows(size // WINDOW)]


class Masks(Part):
    """Masks (C, S, S) of the image's own pixels, from a PNG, with one channel, or an array of several."""

    def shape(self, size: int) -> Shape:
        return None, size, size

    def chunk_shape(self, width: int) -> tuple[int, ...]:
        return width, WINDOW, WINDOW

    def window_places(self, box: CropBox, size: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        top, left = box.row * WINDOW, box.column * WINDOW
        for y in range(0, box.side * WINDOW, WINDOW):
            for x in range(0, box.side * WINDOW, WINDOW):
                yield (0, top + y, left + x), (slice(None), slice(y, y + WINDOW), slice(x, x + WINDOW))

    def is_there(self, path: Path) -> bool:
        return path.is_file() or path.with_suffix(".png").is_file()

    def read_file(self, path: Path, size: int, box: CropBox | None = None) -> np.ndarray:
        mask = read_mask(path, size)
        rows, columns = (slice(None), slice(None)) if box is None else box.slices(WINDOW)
        return np.ascontiguousarray(mask[:, rows, columns])


LATENTS = Moments("latents", "vae_prefix", "latents")
TOKENS = Tokens("tokens", "ssl_prefix", "embeddings")
MASK = Masks("mask", "mask_prefix", "masks")
CONTROL_LATENTS = Moments("control", "control_prefix", "control latents")
PARTS: dict[str, Part] = {part.name: part for part in (LATENTS, TOKENS, MASK, CONTROL_LATENTS)}
USUAL_PARTS = (LATENTS.name, TOKENS.name)  # that every set has


def part_prefixes(
    vae_prefix: str, ssl_prefix: str, mask_prefix: str | None = None, control_prefix: str | None = None
) -> dict[str, str]:
    """Return the file prefix of each part that is to be read; None for a set without the part."""
    prefixes = {
        LATENTS.name: vae_prefix,
        TOKENS.name: ssl_prefix,
        MASK.name: mask_prefix,
        CONTROL_LATENTS.name: control_prefix,
    }
    return {part: prefix for part, prefix in prefixes.items() if prefix is not None}
