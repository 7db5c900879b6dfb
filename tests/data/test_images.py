"""Reading image files."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffusion.data.images import open_image
from diffusion.evaluation.sets.image_set import decode_image


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
