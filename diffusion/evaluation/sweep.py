"""Sweeps over the settings of a sampler: the points, their scores, these as tables and plots, and the best point.

A point is one choice of every setting, an axis is one setting that has several values.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion.evaluation.measure import (
    REAL,
    SYNTHETIC,
    ScoringOptions,
    choose_cells,
    plan_cells,
    score_cell_sets,
    score_sets,
    scores_by_encoder,
)
from diffusion.evaluation.metrics import intervals
from diffusion.evaluation.metrics.intervals import Value
from diffusion.evaluation.metrics.quantities import QUANTITIES, SHOWN
from diffusion.evaluation.reports.charts import ScoreLine, ScorePanel, plot_score_panels
from diffusion.evaluation.sets.cache import hash_files
from diffusion.evaluation.sets.cells import CELLS
from diffusion.evaluation.sets.embedding import Timing
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.formats import SYNTHETIC_DIR, WINDOW
from diffusion.utils.content import fingerprint_file
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.recorded import describe_setting
from diffusion.utils.text import read_json

if TYPE_CHECKING:
    from accelerate import PartialState

    from diffusion.encoders.embedders import PatchEmbedder

SECONDS = "seconds_per_image"  # of a point's record
AXES = {
    "guidance": "guidance strength",
    "steps": "steps of the solver",
    "solver": "solver",
    "interval": "guidance interval, noise levels",
    "spacing": "spacing of the steps",
    "autoguidance": "network that guides",
    "block_cache": "steps that predict blocks",
    "weights": "weights",
    "control_scale": "scale of the control",
}


@dataclass(frozen=True)
class Point:
    """The settings of a point. weights: their name. interval: None guides at every noise level."""

    weights: str
    solver: str
    steps: int
    guidance: float
    interval: tuple[float, float] | None = None
    control_scale: float = 1.0
    spacing: str = "uniform"
    autoguidance: str = "none"
    block_cache: str = "none"

    @property
    def name(self) -> str:
        """Return the name of the point's folder, such as `last_ema-dpm-solver-20-g1.5`, with what is not usual at the end."""
        ends = "" if self.interval is None else f"-i{self.interval[0]:g}-{self.interval[1]:g}"
        ends += "" if self.spacing == "uniform" else f"-{self.spacing.replace(':', '').replace(',', '-')}"
        ends += "" if self.autoguidance == "none" else f"-a_{Path(self.autoguidance).stem}"
        ends += "" if self.block_cache == "none" else f"-b_{Path(self.block_cache).stem}"
        ends += "" if self.control_scale == 1 else f"-c{self.control_scale:g}"
        return f"{self.weights}-{self.solver}-{self.steps}-g{self.guidance:g}{ends}"

    def label(self, axis: str) -> str:
        """Return the value of a setting, for tables and plots."""
        value = getattr(self, axis)
        if axis == "interval":
            return "all" if value is None else f"{value[0]:g} to {value[1]:g}"
        return f"{value:g}" if isinstance(value, float) else str(value)


def make_grid(values: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Return every combination of the axes' values once; without guidance, points that differ by what guides, and where, are the same.

    Raises InputError for two points whose folders would have one name, as of two files of one name.
    """
    points = (Point(**dict(zip(values, choice, strict=True))) for choice in product(*values.values()))
    unguided = {"interval": None, "autoguidance": "none"}
    found = list(dict.fromkeys(replace(point, **unguided) if point.guidance == 1 else point for point in points))
    named: dict[str, Point] = {}
    for point in found:
        other = named.setdefault(point.name, point)
        if other != point:
            pair = next(
                (getattr(other, axis), getattr(point, axis))
                for axis in AXES
                if getattr(other, axis) != getattr(point, axis)
            )
            raise InputError(
                f"{pair[0]} and {pair[1]}: points would both be called {point.name}; give one file another name"
            )
    return found


Sample = Callable[[Point, Path, Path, bool], tuple[int, float | None]]
"""Samples a point: `sample(point, folder, tissue, with_tissue)` fills folder/syn and, where it is asked to, the folder
`tissue` with what conditions, and returns the pixels a side, and the seconds of an image; None where all were there."""


@dataclass(frozen=True)
class PointScorer:
    """Scores the points of a sweep, each in a folder OUT/points/<name>, and leaves alone what is done.

    count: images of a point. real: folder of real images; tissue_is_given: whether it is there, else the first point fills it
    with the tissue that conditions. fit: what becomes of images that are not 256 x 256, where `refuse` holds for small ones alone.
    weights, precision, compiled: how points are sampled, for their records; steering: by which adapters and ControlNet; guides: the files
    of what points call autoguidance.
    """

    out: Path
    count: int
    embedders: Sequence[PatchEmbedder]
    state: PartialState
    options: ScoringOptions
    fit: str
    real: Path
    tissue_is_given: bool
    cache: Path
    weights: str = "ema"
    precision: str = "fp32"
    compiled: bool = False
    steering: Mapping[str, Any] = field(default_factory=dict)
    guides: Mapping[str, Path] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that all points of one table have in common."""
        return {
            "n_images": self.count,
            "real": hash_folder(self.real),
            "encoders": {embedder.name: embedder.fingerprint for embedder in self.embedders},
            "metrics": list(self.options.metrics),
            "seed": self.options.seed,
            "bootstrap": self.options.replicates,
            "on_size": self.fit,
            "mpp": self.options.cells.mpp,
            "precision": self.precision,
            "compile": self.compiled,
            **({"steering": json.loads(json.dumps(self.steering))} if self.steering else {}),
        }

    def score(self, point: Point, checkpoint: Path, sample: Sample) -> None:
        """Sample and score a point, unless its folder already has the scores of exactly these samples.

        checkpoint: the point's weights. Raises InputError, MissingError.
        """
        folder = self.out / "points" / point.name
        has_real = self.tissue_is_given or count_files(self.real) >= self.count
        if has_real and self._is_done(point, folder, checkpoint):
            return
        self.state.wait_for_everyone()  # all have checked before one of them writes
        size, seconds = sample(point, folder, self.real, not has_real)
        fit = "windows" if size > WINDOW and self.fit == "refuse" else self.fit
        sources = {REAL: ImageSet.open(self.real, fit), SYNTHETIC: ImageSet.open(folder / SYNTHETIC_DIR, fit)}
        parts = [
            score_sets(sources, embedder, self.cache, self.state, self.options, Timing()) for embedder in self.embedders
        ]
        cells, _ = choose_cells(sources, self.options.metrics, self.options.cells)
        if cells and fit != "resize":
            options = replace(self.options, cells=cells)
            plans = plan_cells(sources, options)
            parts.append(score_cell_sets(sources, plans, self.cache, self.state, options))
        measured = [part for part in parts if part is not None]  # all in the main process, none in the others
        if self.state.is_main_process:
            record = {"about": self._point_settings(point, folder, checkpoint), "point": asdict(point)}
            record["encoders"] = scores_by_encoder(measured)
            known = seconds or _stored_seconds(folder / "scores.json")  # scored again, with the samples of before
            record |= {} if known is None else {SECONDS: known}
            atomic_write_bytes(folder / "scores.json", (json.dumps(record, indent=2) + "\n").encode("utf-8"))
        self.state.wait_for_everyone()

    def _is_done(self, point: Point, folder: Path, checkpoint: Path) -> bool:
        """Return whether a point was scored with the same weights, samples, real images and settings."""
        file = folder / "scores.json"
        if not file.is_file():
            return False
        stored = read_json(file, "record of scores", "delete it").get("about")
        return stored == self._point_settings(point, folder, checkpoint)

    def _point_settings(self, point: Point, folder: Path, checkpoint: Path) -> dict[str, Any]:
        """Return everything that the scores of a point depend on."""
        guide, schedule = self.guides.get(point.autoguidance), Path(point.block_cache)
        return {
            **self.settings,
            "weights": [self.weights, weights_fingerprint(checkpoint)],
            **({} if guide is None else {"autoguidance": weights_fingerprint(guide)}),
            **({"block_cache": fingerprint_file(schedule)} if schedule.suffix == ".json" else {}),
            "samples": hash_folder(folder / SYNTHETIC_DIR),
        }


@cache
def weights_fingerprint(checkpoint: Path) -> str:
    """Hash the content of a weights file, or of those in a folder as diffusers writes it; empty without any."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("**/*.safetensors"))
    return " ".join(map(fingerprint_file, files))


def hash_folder(folder: Path) -> str:
    """Hash the names, sizes and times of change of a folder's images; empty for a folder that is missing or empty."""
    return hash_files(ImageSet.open(folder).files) if count_files(folder) else ""


def count_files(folder: Path) -> int:
    """Return the number of entries of a folder that are not hidden; 0 for a folder that is missing."""
    return sum(path.name[0] != "." for path in folder.iterdir()) if folder.is_dir() else 0


def check_conditions(
    out: Path, common: Mapping[str, Any], content: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Write which conditions a folder's points share, or check them. Raises InputError that names what differs.

    common: the settings that are compared in any case. content: what identifies the conditions. options: those that name
    them, by which folders of older versions are compared: these recorded no content.
    """
    file = out / "conditions.json"
    now = {**common, **content}
    before = read_json(file, "record of conditions", f"name another --out than {out}") if file.is_file() else now
    if before.keys() >= options.keys():
        now = {**common, **options}
    now = json.loads(json.dumps(now, default=str))
    for name, value in now.items():
        if before.get(name) != value:
            old, new = describe_setting(name, before.get(name)), describe_setting(name, value)
            raise InputError(f"{out} is a sweep with {old}, not {new}; name another --out")
    atomic_write_bytes(file, (json.dumps(now, indent=2) + "\n").encode("utf-8"))


def read_points(folder: Path, about: Mapping[str, Any]) -> dict[Point, dict[str, Any]]:
    """Read the scores of those points in a folder that were scored in one way: their scores.json agree with `about`."""
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


ScoredPoints = Mapping[Point, Mapping[str, Any]]  # point -> `encoders` of its scores.json


def read_seconds(folder: Path) -> dict[str, float]:
    """Return the seconds of an image of the points in a folder, by their names; those of older versions are not known."""
    times = {file.parent.name: _stored_seconds(file) for file in folder.glob("*/scores.json")}
    return {name: seconds for name, seconds in times.items() if seconds is not None}


def _stored_seconds(file: Path) -> float | None:
    return read_json(file, "record of scores", "delete it").get(SECONDS) if file.is_file() else None


def best_point(scored: ScoredPoints, by: str, encoder: str) -> Point:
    """Return the point with the best score of a name. Raises InputError when no point has such a score."""
    values = {point: _value(record, encoder, by) for point, record in scored.items()}
    known_values = {point: value["value"] for point, value in values.items() if value is not None}
    if not known_values:
        known = ", ".join(next(iter(scored.values()))[encoder]["values"])
        raise InputError(f"--by {by}: there is no such score; there are {known}")
    return (max if QUANTITIES[by].more_is_better else min)(known_values, key=known_values.__getitem__)


def scoring_encoder(scored: ScoredPoints, name: str = "fd") -> str:
    """Return by which encoder a score is taken: the first, or what stands for one in scores of cells."""
    return CELLS if QUANTITIES[name].metric == CELLS else next(iter(next(iter(scored.values()))))


def _value(record: Mapping[str, Any], encoder: str, name: str) -> Mapping[str, Any] | None:
    return record[encoder]["values"].get(name) if encoder in record else None


def difference_to_best(scored: ScoredPoints, best: Point, encoder: str) -> dict[Point, Value]:
    """Return how far each point's Frechet distance is above that of the best point, where both have deviations of the same draws."""
    found = {}
    best_record = scored[best][encoder]
    for point, record in scored.items():
        values, deviations = record[encoder]["values"], record[encoder]["deviations"]
        if (
            point == best
            or "fd" not in values
            or len(deviations) < 2
            or len(deviations) != len(best_record["deviations"])
        ):
            continue
        difference = values["fd"]["value"] - best_record["values"]["fd"]["value"]
        error = np.std(np.subtract(deviations, best_record["deviations"]), ddof=1)
        found[point] = Value(difference, *intervals.normal_ci(difference, float(error)))
    return found


def write_sweep(
    out: Path, scored: ScoredPoints, by: str, about: Mapping[str, Any], seconds: Mapping[str, float] | None = None
) -> Point:
    """Write sweep.csv, sweep.json and a plot of each axis that has several values; return the best point.

    seconds: of an image, by the names of points.
    """
    seconds = seconds or {}
    encoder = scoring_encoder(scored, by)
    best = best_point(scored, by, encoder)
    record = {**about, "by": by, "encoder": encoder, "best": best.name,
              "points": [{"name": point.name, **asdict(point), SECONDS: seconds.get(point.name),
                          "encoders": scored[point]} for point in scored]}  # fmt: skip
    atomic_write_bytes(out / "sweep.json", (json.dumps(record, indent=2) + "\n").encode("utf-8"))
    atomic_write_bytes(out / "sweep.csv", points_csv(scored, best, seconds).encode("utf-8"))
    for axis in AXES:
        if axis in varied_axes(scored):
            atomic_write_bytes(out / f"{axis}.png", plot_axis(scored, axis))
        else:
            (out / f"{axis}.png").unlink(missing_ok=True)  # a plot of earlier points
    return best


def varied_axes(points: ScoredPoints) -> list[str]:
    """Return the axes on which points differ."""
    return [axis for axis in AXES if len({getattr(point, axis) for point in points}) > 1]


def points_csv(scored: ScoredPoints, best: Point, seconds: Mapping[str, float] | None = None) -> str:
    """Return a CSV table: for each point its settings, the seconds of an image, each encoder's scores with their intervals, and a
    mark at the best.
    """
    first = next(iter(scored.values()))
    names = [(encoder, name) for encoder in first for name in first[encoder]["values"]]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    ends = ("", " low", " high")
    columns = [f"{encoder} {name}{end}" for encoder, name in names for end in ends]
    encoder = scoring_encoder(scored)
    differences = difference_to_best(scored, best, encoder)
    rows.writerow([*AXES, "seconds an image", *columns, "best", *(f"{encoder} fd less best{end}" for end in ends)])
    for point, record in scored.items():
        values = [_value(record, encoder, name) or {} for encoder, name in names]
        cells = [value.get(part) for value in values for part in ("value", "low", "high")]
        shown = ["" if cell is None else f"{cell:.6g}" for cell in cells]
        less = [f"{part:.6g}" for part in differences[point]] if point in differences else ["", "", ""]
        taken = (seconds or {}).get(point.name)
        time = "" if taken is None else f"{taken:.4g}"
        rows.writerow([*(point.label(axis) for axis in AXES), time, *shown, "best" if point == best else "", *less])
    return text.getvalue()


def plot_axis(scored: ScoredPoints, axis: str) -> bytes:
    """Plot each score over one axis, a line for each choice of the other settings; words are at the places 0, 1, ..."""
    labels = {getattr(point, axis): point.label(axis) for point in scored}
    numeric = all(isinstance(choice, (int, float)) for choice in labels)
    choices = sorted(labels) if numeric else list(labels)
    places = {choice: choice if numeric else i for i, choice in enumerate(choices)}
    other_axes = [other for other in varied_axes(scored) if other != axis]
    groups: dict[str, list[Point]] = {}
    for point in sorted(scored, key=lambda point: places[getattr(point, axis)]):
        label = ", ".join(f"{other} {point.label(other)}" for other in other_axes)
        groups.setdefault(label, []).append(point)
    panels = []
    for name in SHOWN:
        lines = [_build_line(label, points, scored, axis, places, name) for label, points in groups.items()]
        lines = [line for line in lines if line.places]
        if lines:
            panels.append(ScorePanel(QUANTITIES[name].title, QUANTITIES[name].more_is_better, lines))
    ticks = {labels[choice]: places[choice] for choice in choices}
    return plot_score_panels(panels, f"{AXES[axis]}; scores by {scoring_encoder(scored)}", ticks)


def _build_line(
    label: str,
    points: Sequence[Point],
    scored: ScoredPoints,
    axis: str,
    places: Mapping[Any, float],
    name: str,
) -> ScoreLine:
    """Return the values of a score at those points that have it."""
    encoder = scoring_encoder(scored, name)
    values = [(point, _value(scored[point], encoder, name)) for point in points]
    known = [(places[getattr(point, axis)], value) for point, value in values if value is not None]
    bounds = [None if value["low"] is None else (value["low"], value["high"]) for _, value in known]
    return ScoreLine(label, [place for place, _ in known], [value["value"] for _, value in known], bounds)
