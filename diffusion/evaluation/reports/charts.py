"""Plots of a report as transparent PNG, which are readable on a light page and on a dark one, and of a sweep on white."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion.evaluation.metrics.distances import FidExtrapolation
from diffusion.evaluation.metrics.pairs import Pairs
from diffusion.evaluation.reports.curves import Curve
from diffusion.evaluation.reports.style import FAINT, figure_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEUTRAL = "#7d8590"  # reads on a light page and on a dark one
BLUE, ORANGE = "#3b82f6", "#d9730d"
DODGE = 0.008  # of a plot's width, between the intervals of two lines


def new_chart(width: float = 8, height: float = 3.2) -> tuple[Figure, Axes]:
    """Return an empty plot of this size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=NEUTRAL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(NEUTRAL)
    return figure, axes


def finish_chart(figure: Figure, axes: Axes, x: str, y: str, legend: bool = True) -> bytes:
    """Label a plot and return it as PNG."""
    axes.set_xlabel(x, color=NEUTRAL)
    axes.set_ylabel(y, color=NEUTRAL)
    if legend:
        axes.legend(frameon=False, labelcolor=NEUTRAL)
    return figure_png(figure, dpi=150, transparent=True)


def plot_losses(training: Curve, validation: Curve | None = None) -> bytes:
    """Plot a run's training loss, each logged value and smoothed, and its loss on held-out samples, if there is one."""
    figure, axes = new_chart()
    axes.plot(training.steps, training.values, color=NEUTRAL, alpha=0.45, linewidth=0.8, label="each logged step")
    axes.plot(training.steps, training.smoothed(), color=BLUE, linewidth=1.8, label="smoothed")
    if validation is not None:
        axes.plot(
            validation.steps, validation.values, "o-", color=ORANGE, markersize=4, label="held out, averaged weights"
        )
    return finish_chart(figure, axes, "step", "loss")


def plot_similarity(pairs: Pairs) -> bytes:
    """Plot the distribution of the similarity of pairs, beside that of random pairs."""
    import numpy as np

    figure, axes = new_chart()
    low, high = min(pairs.similarity.min(), pairs.random.min()), max(pairs.similarity.max(), pairs.random.max())
    bins = np.linspace(low, high + 1e-6, 41)
    for values, colour, label in (
        (pairs.random, NEUTRAL, "random pairs"),
        (pairs.similarity, BLUE, "real and its sample"),
    ):
        axes.hist(values, bins=bins, color=colour, alpha=0.65, label=f"{label}, mean {values.mean():.3f}")
    return finish_chart(figure, axes, "cosine similarity", "pairs")


def plot_extrapolation(extrapolation: FidExtrapolation, count: int) -> bytes:
    """Plot distances over 1 / number of images, and the line through them to infinitely many."""
    figure, axes = new_chart()
    inverse = [1 / (share * count) for share in extrapolation.shares]
    axes.plot(inverse, extrapolation.distances, "o", color=BLUE, markersize=4, label="at shares of the images")
    slope = (extrapolation.distances[-1] - extrapolation.value) / inverse[-1]
    ends = [0, max(inverse)]
    axes.plot(
        ends, [extrapolation.value + slope * end for end in ends], color=NEUTRAL, linewidth=1, label="extrapolated"
    )
    axes.plot([0], [extrapolation.value], "o", color=ORANGE, label=f"infinitely many: {extrapolation.value:.4g}")
    axes.set_xlim(left=0)
    return finish_chart(figure, axes, "1 / images", "Fréchet distance")


@dataclass(frozen=True)
class ScoreLine:
    """A score over one setting, the others fixed as `label` says: places on the axis, values, and intervals where known."""

    label: str
    places: list[float]
    values: list[float]
    intervals: list[tuple[float, float] | None]


@dataclass(frozen=True)
class ScorePanel:
    """The plot of one score: its lines, and whether more of it is better (None: neither)."""

    title: str
    more_is_better: bool | None
    lines: list[ScoreLine]

    @property
    def best(self) -> tuple[float, float]:
        """Return the place and the value of the best point of all lines."""
        points = [point for line in self.lines for point in zip(line.places, line.values, strict=True)]
        return (max if self.more_is_better else min)(points, key=lambda point: point[1])


def plot_score_panels(panels: Sequence[ScorePanel], xlabel: str, ticks: Mapping[str, float]) -> bytes:
    """Plot scores over one setting, a panel each, on white. ticks: the labels of the setting's values, and their places."""
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * rows), layout="constrained", facecolor="white")
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        width = max(ticks.values()) - min(ticks.values())
        for j, line in enumerate(panel.lines):
            _plot_line(axes, line, f"C{j % 10}", offset=width * DODGE * (j - (len(panel.lines) - 1) / 2))
        axes.set_title(panel.title, loc="left", fontsize=11)
        if len({value for line in panel.lines for value in line.values}) > 1:
            place, value = panel.best
            axes.plot([place], [value], "o", color=ORANGE, markersize=12, fillstyle="none", markeredgewidth=2)
            axes.set_title(f"best {value:.4g}", loc="right", fontsize=10, color=ORANGE)
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.06)
        axes.set_xticks(list(ticks.values()), list(ticks))
    if len(panels[0].lines) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return figure_png(figure, dpi=110)


def _plot_line(axes: Axes, line: ScoreLine, colour: str, offset: float) -> None:
    """Plot one line. offset: of its intervals from their places, so that those of several lines do not overlap."""
    axes.plot(line.places, line.values, "o-", color=colour, markersize=4, label=line.label)
    for place, interval in zip(line.places, line.intervals, strict=True):
        if interval is not None:
            axes.vlines(place + offset, *interval, color=colour, alpha=0.45)
