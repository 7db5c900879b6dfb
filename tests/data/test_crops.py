"""Crops of a patch: their places and windows."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.data.crops import crop_box, crops_per_side, tokens_per_image
from diffusion.utils.errors import InputError


def test_windows_of_the_published_crop():
    assert crop_box(1, per_side=2, crop=512).windows(4) == [2, 3, 6, 7]


@pytest.mark.parametrize("crop", [256, 512, 1024])
def test_windows_of_crops_match_a_labelled_patch(crop):
    """Every pixel of a 1024 patch carries the number of its token; a crop's tokens are those its pixels carry."""
    k = crops_per_side(1024, crop)
    labels = np.arange(16).reshape(4, 4).repeat(256, axis=0).repeat(256, axis=1)
    seen = []
    for i in range(k * k):
        box = crop_box(i, k, crop)
        rows, columns = box.slices(256)
        inside = labels[rows, columns]
        assert inside.shape == (crop, crop)
        assert box.windows(4) == sorted(set(inside.ravel().tolist()))
        seen += box.windows(4)
    assert sorted(seen) == list(range(16))


def test_crop_sizes_that_do_not_divide_a_patch_are_refused():
    for patch, crop in ((1024, 384), (1024, 128), (512, 1024)):
        with pytest.raises(InputError, match="expected a multiple of 256"):
            crops_per_side(patch, crop)
    assert [tokens_per_image(size) for size in (256, 512, 1024)] == [1, 4, 16]
