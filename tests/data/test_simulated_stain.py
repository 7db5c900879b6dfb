"""The simulated stain: what its rule says, on nuclei of known density."""

from __future__ import annotations

import numpy as np

from diffusion.data.nuclei.immunohistochemistry import positive_area, segment_ihc_nuclei
from diffusion.data.simulated_stain import POSITIVE_HAEMATOXYLIN, simulate_stain, write_simulated_stain


def test_dense_nuclei_turn_brown_and_pale_ones_stay_blue(tmp_path):
    from skimage.color import hed2rgb

    rows, columns = np.mgrid[:128, :256]
    density = np.zeros((128, 256, 3))
    density[..., 1] = 0.2 / 6  # eosin everywhere
    centres = [(32, x) for x in (32, 96, 160, 224)] + [(96, x) for x in (32, 96, 160, 224)]
    for number, (y, x) in enumerate(centres):
        strong = number % 2 == 0
        density[(rows - y) ** 2 + (columns - x) ** 2 < 8**2, 0] = POSITIVE_HAEMATOXYLIN * (1.4 if strong else 0.7) / 6
    pixels = (255 * hed2rgb(density)).round().astype(np.uint8)
    stained = simulate_stain(pixels)
    assert stained.shape == pixels.shape and stained.dtype == np.uint8
    positive = positive_area(stained)
    for number, (y, x) in enumerate(centres):
        assert positive[y, x] == (number % 2 == 0), number
    assert not positive[64].any() and segment_ihc_nuclei(stained).max() == 8
    assert stained[64, 128].min() > 200  # pale beside nuclei


def test_it_is_written_once(tmp_path):
    from conftest import texture
    from PIL import Image

    for name in ("hgsc_nest.jpg", "hgsc_stromal_he.jpg"):
        texture(256, 1).save(tmp_path / name)
    paths = write_simulated_stain(tmp_path)
    assert [path.name for path in paths] == ["hgsc_nest.png", "hgsc_stromal_he.png"]
    Image.new("RGB", (2, 2)).save(paths[0])
    write_simulated_stain(tmp_path)
    assert Image.open(paths[0]).size == (2, 2)
    assert np.loadtxt(paths[0].parent / "same_pixels.csv", delimiter=",").tolist() == [[1, 0, 0], [0, 1, 0]]
