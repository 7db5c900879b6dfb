"""The parts of a patch's features."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.data.crops import CropBox
from diffusion.data.features.npy import write_feature
from diffusion.data.features.parts import PARTS, TOKENS
from diffusion.utils.errors import InputError


def test_tokens_have_a_row_for_each_window(tmp_path):
    write_feature(tmp_path / "a.npy", np.zeros((4, 7)))
    assert TOKENS.read_file(tmp_path / "a.npy", 512).shape == (4, 7)
    with pytest.raises(InputError, match=r"expected float16 \(16, D\)"):
        TOKENS.read_file(tmp_path / "a.npy", 1024)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_windows_of_a_crop_are_where_the_crop_is_read_from(tmp_path, part):
    """Chunks put together by window_places are what read_file cuts out of the array of the patch."""
    array = np.random.default_rng(0).normal(size=part.packed_shape(1024, 5)).astype(np.float16)
    write_feature(tmp_path / "a.npy", array)
    for box in (CropBox(0, 0, 4), CropBox(2, 0, 2), CropBox(1, 3, 1)):
        crop = np.empty(part.packed_shape(256 * box.side, 5), np.float16)
        for offset, place in part.window_places(box, 1024):
            ends = zip(offset, part.chunk_shape(5), strict=True)
            crop[place] = array[tuple(slice(start, start + length) for start, length in ends)]
        assert np.array_equal(crop, part.read_file(tmp_path / "a.npy", 1024, box))
