"""Curves of TensorBoard files: what is read is what was written; smoothing."""

from __future__ import annotations

import math

import pytest
from scoring_data import write_events

from diffusion.evaluation.reports.curves import Curve, read_curves
from diffusion.evaluation.reports.report import read_losses
from diffusion.utils.errors import InputError, MissingError


def test_a_long_run_keeps_every_point_and_its_level(tmp_path):
    write_events(
        tmp_path, {"train/loss": {step: step % 2 for step in range(12_000)}}
    )  # more than TensorBoard keeps by default
    curve = read_losses(tmp_path).training
    assert curve.steps == list(range(12_000))
    smooth = curve.smoothed()
    assert max(abs(value - 0.5) for value in smooth) < 0.01
    line = Curve(list(range(300)), [3.0 * step for step in range(300)])
    short = Curve(list(range(90)), [1.0, 0.0] * 45)  # as many points as the demo's run logs
    assert max(abs(value - 0.5) for value in short.smoothed()) < 0.2
    assert line.smoothed()[10:290] == pytest.approx(line.values[10:290])  # it does not lag behind a slope


def curve(*values: float) -> Curve:
    return Curve(list(range(len(values))), list(values))


def test_several_files_and_repeated_steps(tmp_path):
    write_events(tmp_path, {"train/loss": {1: 3.0, 2: 2.0, 3: 9.0}, "validation/loss": {2: 0.5}}, written_at=1000)
    write_events(tmp_path, {"train/loss": {3: 1.5, 4: 1.0}, "validation/loss": {4: 0.25}}, written_at=2000)
    assert read_curves(tmp_path) == {
        "train/loss": Curve([1, 2, 3, 4], [3.0, 2.0, 1.5, 1.0]),
        "validation/loss": Curve([2, 4], [0.5, 0.25]),
    }


def test_a_later_value_counts_even_when_it_is_not_finite(tmp_path):
    write_events(tmp_path, {"train/loss": {1: 3.0, 2: 2.0}}, written_at=1000)
    write_events(tmp_path, {"train/loss": {2: math.nan, 3: math.inf}}, written_at=2000)
    values = read_curves(tmp_path)["train/loss"].values
    assert values[0] == 3.0 and math.isnan(values[1]) and values[2] == math.inf


def test_a_file_that_is_still_written(tmp_path):
    write_events(tmp_path, {"train/loss": {1: 3.0, 2: 2.0, 3: 1.0}})
    file = next((tmp_path / "tensorboard").iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    assert read_curves(tmp_path) == {"train/loss": Curve([1, 2], [3.0, 2.0])}


def test_runs_below_are_not_mixed(tmp_path):
    for name in ("a", "b"):
        write_events(tmp_path / name, {"train/loss": {1: 1.0}})
    with pytest.raises(InputError, match=r"several runs, in a/tensorboard, b/tensorboard; name their work dirs"):
        read_curves(tmp_path)
    write_events(tmp_path, {"train/loss": {1: 7.0}})  # a run of its own, with two others below it
    assert read_curves(tmp_path) == {"train/loss": Curve([1], [7.0])}


def test_smoothing_ignores_nan_and_infinity():
    values = [1.0] * 90
    values[40], values[50], values[60] = math.nan, math.inf, 1e30
    smooth = curve(*values).smoothed()
    assert smooth[:57] == pytest.approx([1.0] * 57) and smooth[64:] == pytest.approx([1.0] * 26)
    assert smooth[60] == pytest.approx(1e30 / 7)
    assert all(map(math.isnan, curve(math.nan, math.inf).smoothed()))


def test_tail_of_a_curve():
    assert Curve([2, 4, 6], [1.0, 2.0, 3.0]).tail(4) == Curve([4, 6], [2.0, 3.0])
    assert Curve([2], [1.0]).tail(3) == Curve([], [])


def test_a_folder_without_events_is_missing(tmp_path):
    with pytest.raises(MissingError):
        read_curves(tmp_path)
