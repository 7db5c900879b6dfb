"""Images cut into square windows side by side, and put together again.

Letters: P images, C channels, H W their sides, S the side of a window, k windows of an image.
"""

from __future__ import annotations

import torch


def cut_windows(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return the windows (P * k, C, S, S) of images (P, C, H, W), row by row; what is over at the right and below is dropped."""
    windows = images.unfold(2, size, size).unfold(3, size, size)  # (P, C, rows, columns, S, S)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def join_windows(windows: torch.Tensor, per_side: int) -> torch.Tensor:
    """Return square images (P, C, k * S, k * S) of windows (P * k * k, C, S, S): the inverse of `cut_windows`; k: per_side."""
    grid = windows.unflatten(0, (-1, per_side, per_side)).permute(0, 3, 1, 4, 2, 5)  # (P, C, k, S, k, S)
    return grid.flatten(4, 5).flatten(2, 3)
