"""Which patches the windows of a slide make: a window is a patch of 256 pixels, 4 x 4 neighbours are one of 1024."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffusion.data.imports.sources import SlideWindows, measure_step
from diffusion.formats import WINDOW

INCOMPLETE, REPEATED = "incomplete blocks", "repeated windows"  # why patches and windows are left out


@dataclass(frozen=True)
class PatchLayout:
    """The patches of one slide, in the order of their names.

    step: pixels from one place of the names' grid to the next, at 20x. places: int64 (P, 2), column and row of each patch.
    corners: int64 (P, 2), its corner in pixels of the slide's finest level. patch: int64 (N,), of which each window is a part,
    -1 for none; token: int64 (N,), which part. side: of a window, in pixels of the finest level. dropped: counts by reason.
    """

    step: int
    places: np.ndarray
    corners: np.ndarray
    patch: np.ndarray
    token: np.ndarray
    side: int
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.places)


def lay_out(windows: SlideWindows, size: int) -> PatchLayout:
    """Put the windows of a slide together to patches of `size` pixels.

    Where all windows lie on the grid that begins in the slide's corner, places are columns and rows of the patches' own grid, as
    cutting a whole slide numbers them. Others lie on grids that begin elsewhere, as CLAM's, one for each piece of tissue: then
    places are pixels at 20x, as cutting with a stride of one pixel numbers them. Blocks begin where the number of windows
    from the left and from the top is a multiple of those of a patch.
    """
    step = measure_step(windows.coords)
    side = (
        step if step is not None and abs(step - windows.side) == 1 else windows.side
    )  # scales are rounded differently
    per_side = size // WINDOW
    coords, first = np.unique(windows.coords, axis=0, return_index=True)
    cells, phases = coords // side, coords % side
    blocks, inner = cells // per_side, cells % per_side
    token = inner[:, 1] * per_side + inner[:, 0]
    keys, block = np.unique(np.concatenate([blocks, phases], axis=1), axis=0, return_inverse=True)
    block = block.reshape(-1)  # one version of NumPy gives another shape
    complete = np.bincount(block, minlength=len(keys)) == per_side**2
    corners = keys[:, :2] * per_side * side + keys[:, 2:]
    aligned = not phases.any()
    places = keys[:, :2] if aligned else np.round(corners * WINDOW / side).astype(np.int64)
    kept = np.flatnonzero(complete)
    places, chosen = np.unique(places[kept], axis=0, return_index=True)  # by column, then row
    number = np.full(len(keys), -1)
    number[kept[chosen]] = np.arange(len(chosen))
    patch = np.full(len(windows.coords), -1)
    tokens = np.zeros(len(windows.coords), dtype=np.int64)
    patch[first], tokens[first] = number[block], token
    counts = {
        INCOMPLETE: len(keys) - len(kept),
        REPEATED: len(windows.coords) - len(coords) + (len(kept) - len(chosen)) * per_side**2,
    }
    return PatchLayout(
        step=size if aligned else 1,
        places=places,
        corners=corners[kept[chosen]],
        patch=patch,
        token=tokens,
        side=side,
        dropped={reason: count for reason, count in counts.items() if count},
    )
