"""Grid arithmetic: which part of a patch, of its latents and of its tokens a training crop is.

A patch of `patch` pixels holds k * k crops of `crop` pixels, k = patch / crop, numbered row-major; and one embedding token
per 256-pixel window, row-major too. Sample i of a data set is crop i % k^2 of patch i // k^2.
"""

from __future__ import annotations

from typing import NamedTuple

from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError


class CropBox(NamedTuple):
    """A square of a patch in 256-pixel windows: its top row, its left column, and the windows of a side."""

    row: int
    column: int
    side: int

    def slices(self, unit: int) -> tuple[slice, slice]:
        """Return rows and columns of the square in an array that has `unit` cells for a side of a window."""
        return (
            slice(self.row * unit, (self.row + self.side) * unit),
            slice(self.column * unit, (self.column + self.side) * unit),
        )

    def windows(self, per_side: int) -> list[int]:
        """Return the row-major numbers of its windows in a patch of per_side * per_side windows.

        Crop 1 of 2 x 2 in a patch of 4 x 4 windows has windows 2, 3, 6 and 7.
        """
        rows, columns = self.slices(1)
        return [
            row * per_side + column
            for row in range(rows.start, rows.stop)
            for column in range(columns.start, columns.stop)
        ]


def crops_per_side(patch: int, crop: int) -> int:
    """Return k. Raises InputError unless the crop divides the patch and holds whole windows."""
    if crop < WINDOW or crop % WINDOW or patch % crop:
        raise InputError(
            f"crops of {crop} pixels from patches of {patch}: expected a multiple of {WINDOW} that divides {patch}"
        )
    return patch // crop


def crop_box(i: int, per_side: int, crop: int) -> CropBox:
    """Return the place of crop `i`, row-major, of `crop` pixels in a patch of per_side * per_side crops."""
    row, column = divmod(i, per_side)
    side = crop // WINDOW
    return CropBox(row * side, column * side, side)


def tokens_per_image(size: int) -> int:
    """Return L, the number of embedding tokens of an image of `size` pixels."""
    return (size // WINDOW) ** 2
