"""Sweeps over the settings of a sampler: which points there are, and what is told of their scores.

A point is one choice of every setting, an axis is one setting that has several values.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.evaluation.metrics import intervals
from diffusion.evaluation.metrics.intervals import Value
from diffusion.evaluation.metrics.scores import QUANTITIES
from diffusion.evaluation.reports.charts import ScoreLine, ScorePanel, plot_score_panels
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.text import read_json

AXES = {
    "guidance": "guidance strength",
    "steps": "steps of the solver",
    "solver": "solver",
    "interval": "guidance interval, noise levels",
    "weights": "weights",
}
PLOTTED = ("fd", "kid", "precision", "recall", "similarity", "above_random")


@dataclass(frozen=True)
class Point:
    """What is sampled at a point; weights: a name of them. interval: None guides at every noise level."""

    weights: str
    solver: str
    steps: int
    guidance: float
    interval: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """Of its folder: like `last_ema-dpm-solver-20-g1.5`, and the interval at the end, if there is one."""
        ends = "" if self.interval is None else f"-i{self.interval[0]:g}-{self.interval[1]:g}"
        return f"{self.weights}-{self.solver}-{self.steps}-g{self.guidance:g}{ends}"

    def shown(self, axis: str) -> str:
        value = getattr(self, axis)
        if axis == "interval":
            return "all" if value is None else f"{value[0]:g} to {value[1]:g}"
        return f"{value:g}" if isinstance(value, float) else str(value)


def make_grid(values: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of the axes' values, each but once: without guidance there is no interval to tell apart."""
    points = (Point(**dict(zip(values, choice, strict=True))) for choice in product(*values.values()))
    return list(dict.fromkeys(replace(point, interval=None) if point.guidance == 1 else point for point in points))


def parse_interval(text: str) -> tuple[float, float] | None:
    """`LO:HI`, or `all`. Raises InputError for anything else."""
    if text == "all":
        return None
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise InputError(f"interval {text!r}: expected LO:HI, such as 0.3:5, or all") from None
    return low, high


def read_points(folder: Path, about: Mapping[str, Any]) -> dict[Point, dict[str, Any]]:
    """The points that lie in a folder and were scored in one way: `about` is in what their scores.json says of it."""
    found = {}
    for file in sorted(folder.glob("*/scores.json")):
        record = read_json(file, "record of scores", "delete it")
        try:
            if about.items() <= record["about"].items():
                point = Point(**record["point"])
                found[replace(point, interval=tuple(point.interval) if point.interval else None)] = record["encoders"]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is no record of scores ({error!r}); delete it") from None
    return found


ScoredPoints = Mapping[Point, Mapping[str, Any]]  # of each point `encoders` as scores.json has them


def best_point(scored: ScoredPoints, by: str, encoder: str) -> Point:
    """The point with the best score. Raises InputError when no point has it."""
    values = {point: _value(record, encoder, by) for point, record in scored.items()}
    there = {point: value["value"] for point, value in values.items() if value is not None}
    if not there:
        known = ", ".join(next(iter(scored.values()))[encoder]["values"])
        raise InputError(f"--by {by}: there is no such score; there are {known}")
    return (max if QUANTITIES[by].more_is_better else min)(there, key=there.__getitem__)


def _value(record: Mapping[str, Any], encoder: str, name: str) -> Mapping[str, Any] | None:
    return record[encoder]["values"].get(name)


def difference_to_best(scored: ScoredPoints, best: Point, encoder: str) -> dict[Point, Value]:
    """How far each point's Frechet distance is above the best point's, where the same draws tell it of both."""
    found = {}
    of_best = scored[best][encoder]
    for point, record in scored.items():
        values, deviations = record[encoder]["values"], record[encoder]["deviations"]
        if point == best or "fd" not in values or len(deviations) < 2 or len(deviations) != len(of_best["deviations"]):
            continue
        difference = values["fd"]["value"] - of_best["values"]["fd"]["value"]
        error = np.std(np.subtract(deviations, of_best["deviations"]), ddof=1)
        found[point] = Value(difference, *intervals.normal_ci(difference, float(error)))
    return found


def write_sweep(out: Path, scored: ScoredPoints, by: str, about: Mapping[str, Any]) -> Point:
    """Write sweep.csv, sweep.json and a plot of each axis that has several values; returns the best point."""
    encoder = next(iter(next(iter(scored.values()))))
    best = best_point(scored, by, encoder)
    record = {**about, "by": by, "encoder": encoder, "best": best.name,
              "points": [{"name": point.name, **asdict(point), "encoders": scored[point]} for point in scored]}  # fmt: skip
    atomic_write_bytes(out / "sweep.json", (json.dumps(record, indent=2) + "\n").encode("utf-8"))
    atomic_write_bytes(out / "sweep.csv", points_csv(scored, best).encode("utf-8"))
    for axis in AXES:
        if axis in varied_axes(scored):
            atomic_write_bytes(out / f"{axis}.png", plot_axis(scored, axis, encoder))
        else:
            (out / f"{axis}.png").unlink(missing_ok=True)  # of points that are no more
    return best


def varied_axes(points: ScoredPoints) -> list[str]:
    """The axes on which points differ."""
    return [axis for axis in AXES if len({getattr(point, axis) for point in points}) > 1]


def points_csv(scored: ScoredPoints, best: Point) -> str:
    """A row for each point: its settings, each encoder's scores with the ends of their intervals, and which is best."""
    first = next(iter(scored.values()))
    names = [(encoder, name) for encoder in first for name in first[encoder]["values"]]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    ends = ("", " low", " high")
    columns = [f"{encoder} {name}{end}" for encoder, name in names for end in ends]
    encoder = next(iter(first))
    differences = difference_to_best(scored, best, encoder)
    rows.writerow([*AXES, *columns, "best", *(f"{encoder} fd less best{end}" for end in ends)])
    for point, record in scored.items():
        values = [_value(record, encoder, name) or {} for encoder, name in names]
        cells = [value.get(part) for value in values for part in ("value", "low", "high")]
        shown = ["" if cell is None else f"{cell:.6g}" for cell in cells]
        less = [f"{part:.6g}" for part in differences[point]] if point in differences else ["", "", ""]
        rows.writerow([*(point.shown(axis) for axis in AXES), *shown, "best" if point == best else "", *less])
    return text.getvalue()


def plot_axis(scored: ScoredPoints, axis: str, encoder: str) -> bytes:
    """Each score over one axis, a line for each choice of the others; words stand at the places 0, 1, ..."""
    shown = {getattr(point, axis): point.shown(axis) for point in scored}
    numeric = all(isinstance(choice, (int, float)) for choice in shown)
    choices = sorted(shown) if numeric else list(shown)
    places = {choice: choice if numeric else i for i, choice in enumerate(choices)}
    others = [other for other in varied_axes(scored) if other != axis]
    groups: dict[str, list[Point]] = {}
    for point in sorted(scored, key=lambda point: places[getattr(point, axis)]):
        label = ", ".join(f"{other} {point.shown(other)}" for other in others)
        groups.setdefault(label, []).append(point)
    panels = []
    for name in PLOTTED:
        lines = [_build_line(label, points, scored, axis, places, encoder, name) for label, points in groups.items()]
        lines = [line for line in lines if line.places]
        if lines:
            panels.append(ScorePanel(QUANTITIES[name].title, QUANTITIES[name].more_is_better, lines))
    ticks = {shown[choice]: places[choice] for choice in choices}
    return plot_score_panels(panels, f"{AXES[axis]}; scores by {encoder}", ticks)


def _build_line(
    label: str,
    points: Sequence[Point],
    scored: ScoredPoints,
    axis: str,
    places: Mapping[Any, float],
    encoder: str,
    name: str,
) -> ScoreLine:
    there = [(point, _value(scored[point], encoder, name)) for point in points]
    there = [(point, value) for point, value in there if value is not None]
    ends = [None if value["low"] is None else (value["low"], value["high"]) for _, value in there]
    at = [places[getattr(point, axis)] for point, _ in there]
    return ScoreLine(label, at, [value["value"] for _, value in there], ends)
