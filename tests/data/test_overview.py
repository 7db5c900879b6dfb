"""The picture of a slide with its squares."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffusion.data.slides.cutting import REASONS
from diffusion.data.slides.overview import COLOURS, KEPT_COLOUR, LEGEND_HEIGHT, render_overview


def test_squares_are_outlined_in_the_colour_of_their_outcome():
    squares = [((0.0, 0.0), None), ((100.0, 0.0), "blank")]
    thumbnail = Image.new("RGB", (200, 100), (90, 0, 90))
    picture = np.asarray(render_overview(thumbnail, squares, 100, 100, REASONS))[LEGEND_HEIGHT:]
    assert tuple(picture[1, 50]) == KEPT_COLOUR and tuple(picture[1, 150]) == COLOURS[0]
    assert tuple(picture[50, 50]) == (90, 0, 90) and picture[50, 150].min() > 100  # pale where it was dropped
