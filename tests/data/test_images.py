"""Reading image files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion.data.images import open_image, read_header
from diffusion.evaluation.sets.image_set import decode_image
from diffusion.utils.errors import InputError, MissingError


def test_orientation_is_applied_as_a_viewer_does(tmp_path):
    """Orientation 6: the right side of what is stored is shown below."""
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:, 256:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = open_image(tmp_path / "a.png")
    assert image.size == (256, 512) and np.asarray(image)[:256].max() == 0 and np.asarray(image)[256:].min() == 255
    assert decode_image(tmp_path / "a.png", "windows").windows.mean(axis=(1, 2, 3)).tolist() == [0, 255]


def test_the_head_of_a_file_is_read_without_its_pixels(tmp_path):
    Image.new("L", (300, 200)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    assert read_header(tmp_path / "a.png") == (300, 200, "L")
    with pytest.raises(InputError, match="a.png is not a readable image"):
        open_image(tmp_path / "a.png")
    with pytest.raises(MissingError, match="is a folder: name the files in it"):
        read_header(tmp_path)
    with pytest.raises(MissingError, match="no image"):
        read_header(tmp_path / "b.png")
