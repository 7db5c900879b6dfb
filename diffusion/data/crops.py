"""Grid arithmetic: which part of a patch, of its latents and of its tokens a training crop is.

A patch of `patch` pixels holds k * k crops of `crop` pixels, k = patch / crop, numbered row-major; and one embedding token
per 256-pixel window, row-major too. Sample i of a data set is crop i % k^2 of patch i // k^2.
"""

from __future__ import annotations

from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError


def crops_per_side(patch: int, crop: int) -> int:
    """k. Raises InputError unless the crop divides the patch and holds whole windows."""
    if crop < WINDOW or crop % WINDOW or patch % crop:
        raise InputError(
            f"crops of {crop} pixels from patches of {patch}: expected a multiple of {WINDOW} that divides {patch}"
        )
    return patch // crop


def square(i: int, per_side: int, size: int) -> tuple[slice, slice]:
    """Rows and columns of square `i` (row-major) of a grid of per_side * per_side squares of `size` cells."""
    row, column = divmod(i, per_side)
    return slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size)


def tokens_of(i: int, per_side: int, tokens_per_side: int) -> list[int]:
    """Row-major numbers of the tokens inside square `i`: crop 1 of 2 x 2 on a 4 x 4 grid has tokens 2, 3, 6, 7."""
    rows, columns = square(i, per_side, tokens_per_side // per_side)
    return [
        row * tokens_per_side + column
        for row in range(rows.start, rows.stop)
        for column in range(columns.start, columns.stop)
    ]


def tokens_per_image(size: int) -> int:
    """L: embedding tokens of an image of `size` pixels."""
    return (size // WINDOW) ** 2
