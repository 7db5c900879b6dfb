"""The results of probes as tables, JSON, CSV, and a plot of scores with their intervals."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.evaluation.metrics.classification import CLASSIFICATION_METRICS, chance_level
from diffusion.evaluation.metrics.intervals import Value
from diffusion.evaluation.probe import PROBES, ProbeResult
from diffusion.evaluation.reports.style import COLOURS, DPI, FAINT, INK, SOFT, figure_png
from diffusion.utils.files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ProbeResults = Mapping[str, Sequence[ProbeResult]]  # name of an encoder -> its probes
MARKERS = dict(zip(PROBES, "os", strict=True))
DIFFERENCES = (("both", "real"), ("synthetic", "real"))
PANEL_WIDTH, ROW, MARGIN = (
    350,
    68,
    62,
)  # pixels: width of a panel, height of a training set in it, of its title and axis


def differences(probed: Sequence[ProbeResult]) -> Iterator[tuple[str, str, dict[str, Value]]]:
    """Yield what training on more or on other images changes, for each probe: probe, `both - real`, values by metric."""
    found = {(each.probe, each.training): each for each in probed}
    for kind in PROBES:
        for one, other in DIFFERENCES:
            if (kind, one) in found and (kind, other) in found:
                yield kind, f"{one} - {other}", found[kind, one].difference_to(found[kind, other])


def results_to_dict(results: ProbeResults) -> dict[str, Any]:
    """Return all scores and differences for JSON."""
    return {
        encoder: {
            "scores": [{"probe": each.probe, "training": each.training, **each.to_dict()} for each in probed],
            "differences": [
                {"probe": kind, "of": what, "values": {metric: value._asdict() for metric, value in values.items()}}
                for kind, what, values in differences(probed)
            ],
        }
        for encoder, probed in results.items()
    }


def format_value(value: Value, sign: str = "") -> str:
    """Return `0.912 [0.851, 0.958]`; sign: "+" to show that of positive numbers, too."""
    bounds = "" if value.low is None else f" [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
    return f"{value.value:{sign}.3f}{bounds}"


def score_rows(results: ProbeResults) -> list[tuple[str, ...]]:
    """Return a table of all scores, its head first."""
    rows = [("encoder", "probe", "trained on", "images", *(title.lower() for title in CLASSIFICATION_METRICS.values()))]
    for encoder, probed in results.items():
        for each in probed:
            head = (encoder, PROBES[each.probe], each.training, str(sum(each.counts.values())))
            rows.append((*head, *(format_value(value) for value in each.values.values())))
    return rows


def difference_rows(results: ProbeResults) -> list[tuple[str, ...]]:
    """Return a table of the differences between training sets, its head first; it is empty when there is none."""
    rows = [
        (encoder, PROBES[kind], what, *(format_value(value, "+") for value in values.values()))
        for encoder, probed in results.items()
        for kind, what, values in differences(probed)
    ]
    head = ("encoder", "probe", "difference", *(title.lower() for title in CLASSIFICATION_METRICS.values()))
    return [head, *rows] if rows else []


def format_csv(results: ProbeResults) -> str:
    """Return a CSV row per encoder, probe and training set; each metric has its value and the two ends of its interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = [f"{metric}{end}" for metric in CLASSIFICATION_METRICS for end in ("", "_low", "_high")]
    writer.writerow(["encoder", "probe", "training", "training_images", *metrics])
    for encoder, probed in results.items():
        for each in probed:
            numbers = [number for value in each.values.values() for number in value]
            writer.writerow([encoder, each.probe, each.training, sum(each.counts.values()), *numbers])
    return text.getvalue()


def write_probe_report(out: Path, about: Mapping[str, Any], results: ProbeResults) -> None:
    """Write plot.png, scores.csv and scores.json into a folder. about: what scores.json has beside the scores."""
    chance = chance_level(next(iter(results.values()))[0].confusion)
    record = {**about, "chance": chance, "encoders": results_to_dict(results)}
    contents = {
        "plot.png": plot_probes(results, chance),
        "scores.csv": format_csv(results).encode(),
        "scores.json": (json.dumps(record, indent=2) + "\n").encode(),
    }
    for name, content in contents.items():
        atomic_write_bytes(out / name, content)


def plot_probes(results: ProbeResults, chance: Mapping[str, float]) -> bytes:
    """Plot a panel for each encoder (down) and metric (across), with the intervals of each training set, as PNG.

    chance: the scores of guessing, by metric, plotted as dashed lines.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    trainings = list(dict.fromkeys(each.training for probed in results.values() for each in probed))
    size = len(CLASSIFICATION_METRICS) * PANEL_WIDTH / DPI, (len(results) * (len(trainings) * ROW + MARGIN) + 40) / DPI
    figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08), facecolor="white")
    grid = figure.subplots(len(results), len(CLASSIFICATION_METRICS), sharex="col", sharey=True, squeeze=False)
    for row, (encoder, probed) in enumerate(results.items()):
        for axes, metric in zip(grid[row], CLASSIFICATION_METRICS, strict=True):
            _plot_panel(axes, probed, metric, trainings, chance.get(metric))
        grid[row][0].set_ylabel(encoder, color=INK, fontsize=10, labelpad=10)
    for axes, title in zip(grid[0], CLASSIFICATION_METRICS.values(), strict=True):
        axes.set_title(title, loc="left", fontsize=11, color=INK)
    handles = [
        Line2D([], [], color=COLOURS[i], marker=MARKERS[kind], linewidth=2, label=title)
        for i, (kind, title) in enumerate(PROBES.items())
    ]
    handles.append(Line2D([], [], color=SOFT, linestyle="--", linewidth=1, label="chance"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, fontsize=11)
    return figure_png(figure)


def _plot_panel(
    axes: Axes, probed: Sequence[ProbeResult], metric: str, trainings: Sequence[str], chance: float | None
) -> None:
    for each in probed:
        i = list(PROBES).index(each.probe)
        side = 2 * i - 1  # the linear probe and its number above the middle, k-NN below
        place, value = trainings.index(each.training) + 0.13 * side, each.values[metric]
        if value.low is not None and value.high is not None:
            axes.plot([value.low, value.high], [place, place], color=COLOURS[i], linewidth=2, solid_capstyle="round")
        axes.plot(value.value, place, MARKERS[each.probe], color=COLOURS[i], markersize=7)
        axes.annotate(
            f"{value.value:.3f}", (value.value, place), (0, -7 * side), textcoords="offset points",
            ha="center", va="top" if side > 0 else "bottom", fontsize=8.5, color=COLOURS[i],
        )  # fmt: skip
    if chance is not None:
        axes.axvline(chance, color=SOFT, linestyle="--", linewidth=1.2, zorder=1.5)
    axes.set_yticks(range(len(trainings)), trainings)
    axes.set_ylim(len(trainings) - 0.5, -0.5)  # the first on top
    axes.tick_params(colors=SOFT)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
