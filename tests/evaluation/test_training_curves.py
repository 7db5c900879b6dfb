"""The picture of training curves: its panels, size and colours."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from diffusion.evaluation.reports.curves import Curve
from diffusion.evaluation.reports.style import COLOURS
from diffusion.evaluation.reports.training_curves import (
    CurvePanel,
    choose_panels,
    picture_size,
    plot_curves,
)
from diffusion.utils.errors import InputError


def curve(*values: float) -> Curve:
    return Curve(list(range(len(values))), list(values))


class TestPanels:
    def test_standard_ones_of_what_is_there(self):
        runs = {
            "a": {"train/loss": curve(1.0), "train/mse": curve(1.0), "train/data_wait": curve(0.1)},
            "b": {"train/samples_per_second": curve(9.0), "validation/loss": curve(1.0), "x": curve(0.0)},
        }
        assert choose_panels(runs) == [
            CurvePanel(("train/loss",)),
            CurvePanel(("validation/loss",)),
            CurvePanel(("train/samples_per_second", "train/data_wait")),
        ]

    def test_nothing_skipped_is_nothing_to_see(self):
        bad, skipped = "train/bad_items", "train/skipped_steps"
        fine = {"train/loss": curve(1.0), bad: curve(0.0, 0.0), skipped: curve(0.0)}
        assert choose_panels({"a": fine}) == [CurvePanel(("train/loss",))]
        assert choose_panels({"a": fine, "b": fine | {bad: curve(0.0, 2.0)}})[1:] == [CurvePanel((bad,))]
        assert choose_panels({"a": fine | {skipped: curve(1.0), bad: curve(1.0)}})[1:] == [CurvePanel((bad, skipped))]

    def test_chosen_tags(self):
        runs = {"a": {"train/vb": curve(1.0), "x": curve(1.0)}, "b": {"train/loss": curve(1.0)}}
        assert choose_panels(runs, ["x", "train/vb", "x"], log_loss=True) == [
            CurvePanel(("x",)),
            CurvePanel(("train/vb",), logarithmic=True),
        ]
        with pytest.raises(
            InputError, match=r"no run has train/los, did you mean train/loss\? \(there are train/loss, "
        ):
            choose_panels(runs, ["train/los"])
        with pytest.raises(InputError, match="--tags what to draw of x"):
            choose_panels({"a": {"x": curve(1.0)}})

    def test_logarithmic_where_something_is_above_0(self):
        values = {"train/loss": curve(-1.0, math.inf), "train/grad_norm": curve(0.0, 0.1)}
        assert choose_panels({"a": values}, log_loss=True) == [
            CurvePanel(("train/loss",)),
            CurvePanel(("train/grad_norm",), logarithmic=True),
        ]
        assert choose_panels({"a": {"train/grad_norm": curve(math.nan, 0.0)}}) == [CurvePanel(("train/grad_norm",))]


def test_size_and_colours():
    of_run = {"train/loss": curve(*np.linspace(1, 0.1, 50)), "train/grad_norm": curve(1.0, 0.5)}
    runs = {"one": of_run, "two": {"train/loss": curve(*np.linspace(0.5, 0.2, 50)), "train/lr": curve(1e-4, 0.0)}}
    panels = choose_panels(runs)
    content = plot_curves(runs, panels)
    picture = Image.open(io.BytesIO(content))
    assert picture.size == picture_size(list(runs), panels) == (2 * 800, 2 * 400 + 2 * 28)
    pixels = np.asarray(picture.convert("RGB"))
    for colour in COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(-1)[:428, :800].sum() > 500  # a line across the first panel
    assert (pixels[470:, 810:] == 255).all()  # three panels: the last place is empty
    assert content == plot_curves(runs, panels)


def test_one_panel_and_a_legend_of_many_rows():
    names = [f"a_name_that_takes_a_good_part_of_a_row_{i}" for i in range(10)]
    runs = {name: {"train/loss": curve(1.0, i)} for i, name in enumerate(names)}
    panels = choose_panels(runs)
    assert picture_size(names, panels) == (800, 400 + 11 * 28)
    assert Image.open(io.BytesIO(plot_curves(runs, panels))).size == (800, 400 + 11 * 28)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [[math.nan], [math.inf, -math.inf], [0.0], [-1.0, 1.0], [1e-30, 3e38]], ids=str)
def test_any_values_can_be_plotted(values):
    tags = ("train/loss", "train/grad_norm", "train/lr", "train/samples_per_second", "train/data_wait", "x")
    runs = {"a": {tag: curve(*values) for tag in tags}}
    plot_curves(runs, [*choose_panels(runs, log_loss=True), *choose_panels(runs, ["train/data_wait", "x"])])
