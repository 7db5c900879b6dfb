"""Folders of images: which are refused, and how images are resized."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scoring_data import (
    plain,
)

from diffusion.evaluation.sets.image_set import ImageSet, decode_image
from diffusion.utils.errors import InputError, MissingError


def test_a_resized_image_is_antialiased(tmp_path):
    """Stripes of one pixel become even grey, where taking every fourth pixel would keep one colour of them."""
    stripes = np.zeros((1024, 1200, 3), dtype=np.uint8)
    stripes[::2] = 200
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    pixels = decode_image(tmp_path / "stripes.png", "resize").windows[0]
    assert pixels.shape == (256, 256, 3)
    assert abs(pixels[8:-8].astype(float) - 100).max() < 8


def test_folders_that_cannot_be_scored_are_refused(tmp_path):
    with pytest.raises(MissingError, match="no folder"):
        ImageSet.open(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="no image"):
        ImageSet.open(tmp_path)
    plain((1, 2, 3)).save(tmp_path / "a.png")
    plain((1, 2, 3)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="have one name"):
        ImageSet.open(tmp_path)
