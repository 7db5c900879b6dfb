"""The grid of a slide: where its patches may lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from diffusion.utils.errors import InputError

WHOLE_SLIDE = (0.0, 0.0, 1.0, 1.0)


class Cell(NamedTuple):
    """One square of the grid: its column and row, and its top-left pixel."""

    column: int
    row: int
    x: int
    y: int


@dataclass(frozen=True)
class Grid:
    """Where patches lie: squares of `size`, `step` apart, wholly inside `area` (left, top, right, bottom; fractions)."""

    size: int
    step: int
    area: tuple[float, float, float, float] = WHOLE_SLIDE

    def __post_init__(self) -> None:
        left, top, right, bottom = self.area
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(
                f"got the area {self.area}, expected fractions X0 Y0 X1 Y1 with 0 <= X0 < X1 <= 1 and 0 <= Y0 < Y1 <= 1"
            )

    def cells(self, width: int, height: int) -> list[Cell]:
        """List the squares of a slide of `width` x `height` pixels, row by row."""
        left, top, right, bottom = self.area
        columns = list(enumerate(self._starts(left * width, right * width)))
        rows = enumerate(self._starts(top * height, bottom * height))
        return [Cell(column, row, x, y) for row, y in rows for column, x in columns]

    def corner(self, column: int, row: int, width: int, height: int) -> tuple[int, int] | None:
        """Return the top-left pixel of a square of the grid of such a slide; None for one that is not there."""
        left, top, right, bottom = self.area
        columns, rows = self._starts(left * width, right * width), self._starts(top * height, bottom * height)
        if not (column < len(columns) and row < len(rows)):
            return None
        return columns[column], rows[row]

    def _starts(self, low: float, high: float) -> range:
        tiny = 1e-6  # of a pixel: 0.29 * 100 is 28.999999999999996
        return range(math.ceil(low - tiny), math.floor(high + tiny) - self.size + 1, self.step)
