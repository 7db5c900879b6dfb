"""Pictures of any size from a network of one size: overlapping windows whose predictions are blended at every step.

The blend is MultiDiffusion's (Bar-Tal et al. 2023), with weights that fade towards the borders of a window; every solver
of `sampling` then works on the picture as a whole, since a `WindowedNetwork` is a network for it.

Letters: B pictures, C channels, H W cells of the picture, S cells a side of a window, n windows, L tokens of width D each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import torch

from diffusion.condition import Condition, as_condition
from diffusion.guidance import Network
from diffusion.utils.errors import InputError

Tokens = TypeVar("Tokens", torch.Tensor, Condition)


@dataclass(frozen=True)
class Windows:
    """Squares of `side` cells that cover a picture, `stride` apart; the last of a row or column ends where the picture does.

    Raises InputError for windows that leave gaps, or are larger than the picture.
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
        """Where windows begin, from the top."""
        return _window_starts(self.height, self.side, self.stride)

    @property
    def columns(self) -> list[int]:
        return _window_starts(self.width, self.side, self.stride)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top-left cells of the windows, row by row."""
        return list(product(self.rows, self.columns))

    def blend_weights(self) -> torch.Tensor:
        """How much each cell across a window counts (S,): 1 in the middle, evenly less to 0 where windows overlap.

        Evenly, because two windows that differ by a slope then still join without a step; a cosine leaves one.
        """
        ramp = min(self.side - self.stride, self.side // 2)
        rising = (torch.arange(ramp) + 0.5) / max(ramp, 1)
        weights = torch.ones(self.side)
        weights[:ramp], weights[self.side - ramp :] = rising, rising.flip(0)
        return weights


def _window_starts(length: int, side: int, stride: int) -> list[int]:
    return [*range(0, length - side, stride), length - side]


def sum_weights(starts: list[int], fade: torch.Tensor, length: int) -> torch.Tensor:
    """The weights of all windows together at each cell of a row or column (length,)."""
    total = torch.zeros(length)
    for start in starts:
        total[start : start + len(fade)] += fade
    return total


class WindowedNetwork:
    """A network of S x S cells as one of H x W: it predicts for the windows, some at once, and blends what it says.

    model: (b, C, S, S), (b,), (b, L, D) -> (b, 2C, S, S); batch_size: windows in one call of it, b at most.
    Memory for the network's activations depends on the batch size, not on the picture.
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
        """x (B, C, H, W), timestep (B,), y (B, n, L, D), as `window_tokens` orders them -> (B, 2C, H, W) in float32.

        y may be a Condition of such tokens; each window then sees its part of the control (B, C, H, W).
        """
        condition = as_condition(y)
        side, weights = self.windows.side, (self._fade[:, None] * self._fade).to(x.device)
        blended = None
        jobs = list(product(range(len(x)), enumerate(self.windows.corners)))
        for first in range(0, len(jobs), self.batch_size):
            some = jobs[first : first + self.batch_size]
            places = [(b, slice(None), slice(row, row + side), slice(col, col + side)) for b, (_, (row, col)) in some]
            parts = Condition.cat([condition[b].window(n, *corner, side) for b, (n, corner) in some])
            predicted = self.model(
                torch.stack([x[place] for place in places]),
                timestep[[b for b, _ in some]],
                parts if isinstance(y, Condition) else parts.tokens,
            )
            if blended is None:
                blended = x.new_zeros(len(x), predicted.shape[1], *x.shape[2:], dtype=torch.float32)
            for place, one in zip(places, predicted.float() * weights, strict=True):
                blended[place] += one
        return blended.div_(self._total_weights.to(x.device))  # in place: it is as large as four pictures


def window_tokens(grid: Tokens, windows: Windows, per_side: int) -> Tokens:
    """Return the tokens of each window (n, L, D), L = per_side squared, from a grid of tokens (rows, columns, D).

    The grid covers the picture, one token a square of S / per_side cells; between tokens it is interpolated.
    Of a Condition with grids (B, rows, columns, D) one with tokens (B, n, L, D) is returned.
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
    """values (N, ...) at fractional positions (P,) of their first axis, linearly interpolated: (P, ...)."""
    low = positions.floor().long()
    part = (positions - low).view(-1, *[1] * (values.ndim - 1)).to(values)
    return torch.lerp(values[low], values[(low + 1).clamp(max=len(values) - 1)], part)


def decode_bands(
    decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, tile: int = 64, overlap: int = 16
) -> Iterator[torch.Tensor]:
    """Pixels of latents (1, C, H, W) from the top down, in bands (3, rows, 8W) in float32 on the CPU.

    decode: (1, C, h, w) -> (1, 3, 8h, 8w). It gets tiles of `tile` cells a side at most, which overlap and are blended,
    so that its activations do not grow with the picture; no more than a band of pixels is held here.
    """
    height, width = latents.shape[2:]
    side = min(tile, height, width)
    windows = Windows(height, width, side, side - min(overlap, side // 4))
    band, top, scale = None, 0, 0
    for row, below in zip(windows.rows, [*windows.rows[1:], height], strict=True):
        for column in windows.columns:
            pixels = decode(latents[:, :, row : row + side, column : column + side])[0].float().cpu()
            if band is None:
                scale = pixels.shape[1] // side  # pixels to a cell
                fade = _pixel_weights(windows, scale)
                heights = sum_weights([scale * start for start in windows.rows], fade, scale * height)
                widths = sum_weights([scale * start for start in windows.columns], fade, scale * width)
                band = torch.zeros(3, scale * side, scale * width)
            band[:, :, scale * column : scale * (column + side)] += pixels * fade[:, None] * fade
        finished = scale * (below - row)
        yield band[:, :finished] / (heights[top : top + finished, None] * widths)
        top += finished
        band = torch.cat([band[:, finished:], band.new_zeros(3, finished, scale * width)], dim=1)


def _pixel_weights(windows: Windows, scale: int) -> torch.Tensor:
    """The fade of a window of pixels."""
    return Windows(
        scale * windows.height, scale * windows.width, scale * windows.side, scale * windows.stride
    ).blend_weights()
