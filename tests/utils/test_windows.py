"""Images cut into windows and joined again."""

from __future__ import annotations

import torch

from diffusion.utils.windows import cut_windows, join_windows


def test_windows_are_cut_row_by_row_and_joined_to_the_same_images():
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)[..., :4]  # not contiguous
    windows = cut_windows(images, 2)
    assert windows.shape == (8, 3, 2, 2)
    assert torch.equal(windows[5], images[1, :, 0:2, 2:4]) and torch.equal(windows[2], images[0, :, 2:4, 0:2])
    assert torch.equal(join_windows(windows, 2), images)


def test_what_is_over_at_the_right_and_below_is_dropped():
    images = torch.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    windows = cut_windows(images, 2)
    assert windows.shape == (12, 3, 2, 2) and torch.equal(windows, cut_windows(images[:, :, :4, :6], 2))
    assert torch.equal(windows[3], images[0, :, 2:4, 0:2])
