"""Pictures of any size from a network of one size: overlapping windows whose predictions are blended at every step.

The blend is MultiDiffusion's (Bar-Tal et al. 2023), with weights that fall off towards the borders of a window. A
`WindowedNetwork` is a network of the whole picture, so every solver of `sampling` works with it.

Letters: B pictures, C channels, H W cells of the picture, S cells a side of a window, n windows, L tokens of width D each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import overload

import torch

from diffusion.condition import Condition, as_condition
from diffusion.formats import LATENT_FACTOR
from diffusion.guidance import Network
from diffusion.utils.errors import InputError

BAND_ROWS = 256  # pixels of a band of a picture that is written, at most


@dataclass(frozen=True)
class Windows:
    """Square windows of `side` cells that cover a picture, `stride` apart; the last one ends where the picture ends.

    Raises InputError for windows that leave gaps, and for windows larger than the picture.
    """

    height: int
    width: int
    side: int
    stride: int

    def __post_init__(self):
        if not 1 <= self.stride <= self.side:
            raise InputError(f"windows {self.stride} cells apart: expected 1 to {self.side}, the side of a window")
        if min(self.height, self.width) < self.side:
            raise InputError(f"a picture of {self.height} x {self.width} cells has no room for windows of {self.side}")

    @property
    def rows(self) -> list[int]:
        """First rows of the windows."""
        return _window_starts(self.height, self.side, self.stride)

    @property
    def columns(self) -> list[int]:
        """First columns of the windows."""
        return _window_starts(self.width, self.side, self.stride)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top-left cells of the windows, row by row."""
        return list(product(self.rows, self.columns))

    def blend_weights(self) -> torch.Tensor:
        """Return the weights of a window's cells along one axis (S,): 1 in the middle, linearly to 0 where windows overlap.

        Linear weights join two windows that differ by a slope without a step; a cosine does not.
        """
        ramp = min(self.side - self.stride, self.side // 2)
        rising = (torch.arange(ramp) + 0.5) / max(ramp, 1)
        weights = torch.ones(self.side)
        weights[:ramp], weights[self.side - ramp :] = rising, rising.flip(0)
        return weights


def _window_starts(length: int, side: int, stride: int) -> list[int]:
    return [*range(0, length - side, stride), length - side]


def sum_weights(starts: list[int], fade: torch.Tensor, length: int) -> torch.Tensor:
    """Return the sum of all windows' weights at each cell of a row or column, (length,)."""
    total = torch.zeros(length)
    for start in starts:
        total[start : start + len(fade)] += fade
    return total


class WindowedNetwork:
    """A network of H x W cells made of one of S x S: it predicts for batches of windows, and blends the predictions.

    model: (b, C, S, S), (b,), (b, L, D) -> (b, 2C, S, S); batch_size: the largest b.
    Memory for the network's activations depends on the batch size, not on the size of the picture.
    """

    def __init__(self, model: Network, windows: Windows, batch_size: int):
        self.model, self.windows, self.batch_size = model, windows, batch_size
        self._fade = windows.blend_weights()
        heights, widths = (
            sum_weights(starts, self._fade, length)
            for starts, length in ((windows.rows, windows.height), (windows.columns, windows.width))
        )
        self._total_weights = heights[:, None] * widths

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor | Condition) -> torch.Tensor:
        """Predict for x (B, C, H, W), timestep (B,), y (B, n, L, D) in the order of `window_tokens`: (B, 2C, H, W) float32.

        y may be a Condition of such tokens; each window is then given its part of the control (B, C, H, W).
        """
        condition = as_condition(y)
        side, weights = self.windows.side, (self._fade[:, None] * self._fade).to(x.device)
        blended: torch.Tensor | None = None
        jobs = list(product(range(len(x)), enumerate(self.windows.corners)))
        for first in range(0, len(jobs), self.batch_size):
            batch = jobs[first : first + self.batch_size]
            places = [(b, slice(None), slice(row, row + side), slice(col, col + side)) for b, (_, (row, col)) in batch]
            parts = Condition.cat([condition[b].window(n, *corner, side) for b, (n, corner) in batch])
            predicted = self.model(
                torch.stack([x[place] for place in places]),
                timestep[[b for b, _ in batch]],
                parts if isinstance(y, Condition) else parts.tokens,
            )
            if blended is None:
                blended = x.new_zeros(len(x), predicted.shape[1], *x.shape[2:], dtype=torch.float32)
            for place, one in zip(places, predicted.float() * weights, strict=True):
                blended[place] += one
        assert blended is not None  # there is one window at least
        return blended.div_(self._total_weights.to(x.device))  # in place: it is as large as four pictures


@overload
def window_tokens(grid: torch.Tensor, windows: Windows, per_side: int) -> torch.Tensor: ...
@overload
def window_tokens(grid: Condition, windows: Windows, per_side: int) -> Condition: ...
def window_tokens(grid: torch.Tensor | Condition, windows: Windows, per_side: int) -> torch.Tensor | Condition:
    """Return the tokens of each window (n, L, D), L = per_side squared, from a grid of tokens (rows, columns, D).

    The grid covers the picture, with one token for every S / per_side cells a side; between tokens it is interpolated.
    A Condition with grids (B, rows, columns, D) becomes one with tokens (B, n, L, D).
    Raises InputError for a grid of another size.
    """
    if isinstance(grid, Condition):
        return replace(grid, tokens=torch.stack([window_tokens(each, windows, per_side) for each in grid.tokens]))
    cells = windows.side // per_side
    expected = (windows.height // cells, windows.width // cells)
    if tuple(grid.shape[:2]) != expected:
        raise InputError(f"a grid of {grid.shape[0]} x {grid.shape[1]} tokens: expected {expected[0]} x {expected[1]}")
    steps = torch.arange(per_side)
    conditions = []
    for row, column in windows.corners:
        across = _interpolate(grid, row / cells + steps)  # (per_side, columns, D)
        conditions.append(_interpolate(across.transpose(0, 1), column / cells + steps).transpose(0, 1).flatten(0, 1))
    return torch.stack(conditions)


def _interpolate(values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Interpolate values (N, ...) linearly at fractional positions (P,) of their first axis: (P, ...)."""
    low = positions.floor().long()
    part = (positions - low).view(-1, *[1] * (values.ndim - 1)).to(values)
    return torch.lerp(values[low], values[(low + 1).clamp(max=len(values) - 1)], part)


def decode_bands(
    decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, tile: int = 64, overlap: int = 16
) -> Iterator[torch.Tensor]:
    """Yield the pixels of latents (1, C, H, W) from the top down, in bands (3, rows, 8W), float32 on the CPU.

    decode: (1, C, h, w) -> (1, 3, 8h, 8w). It is called with tiles of at most `tile` cells a side, which overlap and are
    blended, so that its activations do not grow with the picture; only one band of pixels is kept in memory.
    """
    height, width = latents.shape[2:]
    side = min(tile, height, width)
    windows = Windows(height, width, side, side - min(overlap, side // 4))
    pixel_windows = Windows(*(LATENT_FACTOR * cells for cells in (height, width, side, windows.stride)))

    def decode_tile(row: int, column: int) -> torch.Tensor:
        cells = latents[:, :, windows.rows[row] :, windows.columns[column] :]
        return decode(cells[:, :, :side, :side])[0].float().cpu()

    yield from blend_bands(decode_tile, pixel_windows)


def blend_bands(tile: Callable[[int, int], torch.Tensor], windows: Windows) -> Iterator[torch.Tensor]:
    """Yield the pixels of a picture from the top down, in bands (3, rows, W), float32, blended of tiles that overlap.

    tile: returns the pixels (3, S, S) of the tile in a row and a column of the windows, which count pixels here. One row of tiles
    is in memory at a time.
    """
    if len(windows.corners) == 1:  # to the bit as it is
        whole = tile(0, 0)
        yield from whole.split(BAND_ROWS, dim=1)
        return
    weights = windows.blend_weights()
    heights = sum_weights(windows.rows, weights, windows.height)
    widths = sum_weights(windows.columns, weights, windows.width)
    band = torch.zeros(3, windows.side, windows.width)
    for row, (top, below) in enumerate(zip(windows.rows, [*windows.rows[1:], windows.height], strict=True)):
        for column, left in enumerate(windows.columns):
            band[:, :, left : left + windows.side] += tile(row, column) * weights[:, None] * weights
        for start in range(top, below, BAND_ROWS):
            stop = min(start + BAND_ROWS, below)
            yield band[:, start - top : stop - top] / (heights[start:stop, None] * widths)
        finished, kept = below - top, windows.side - (below - top)
        for channel in band:  # moved up in place: of a whole slide a band has gigabytes
            channel[:kept] = channel[finished:].clone()
            channel[kept:] = 0
