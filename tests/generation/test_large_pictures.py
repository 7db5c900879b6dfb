"""What large pictures are of, and their sizes, before a run is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion.generation.large_pictures import LargeSource, PictureSize
from diffusion.utils.errors import InputError


def test_a_picture_is_made_of_windows():
    size = PictureSize(1280, 512)
    assert (size.rows, size.columns) == (5, 2)
    with pytest.raises(InputError, match="--width 1000: expected a multiple of 256"):
        PictureSize(width=1000)


def test_what_viewers_of_png_do_not_open_is_tiff():
    small, large = PictureSize(8192, 256), PictureSize(256, 8448)
    assert [size.choose_extension("auto") for size in (small, large)] == ["png", "tiff"]
    assert small.choose_extension("tiff") == "tiff" and large.choose_extension("png") == "png"


def test_one_file_conditions():
    assert LargeSource().file is None and LargeSource(slide=Path("a.svs"), x=4).file == Path("a.svs")
    with pytest.raises(InputError, match="--reference and --tokens: one of them conditions"):
        LargeSource(reference=Path("a.png"), tokens=Path("a.npy"))
    with pytest.raises(InputError, match="--x and --y are of a region of --slide"):
        LargeSource(reference=Path("a.png"), y=4)
