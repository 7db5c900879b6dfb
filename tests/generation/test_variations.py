"""How many images lie between two."""

from __future__ import annotations

import pytest

from diffusion.generation.variations import check_variations
from diffusion.utils.errors import InputError


def test_five_images_lie_between_two_unless_it_is_said():
    assert [check_variations(images, 4, None) for images in (1, 2, 3)] == [0, 5, 0]
    assert check_variations(2, 0, 3) == 3 and check_variations(2, 4, 0) == 0
    for images, variations, between in ((1, 4, 3), (3, 4, 3), (2, 4, 1)):
        with pytest.raises(InputError, match="expected two images, or two of --class, and two or more"):
            check_variations(images, variations, between)
    with pytest.raises(InputError, match="nothing to sample"):
        check_variations(1, 0, None)
