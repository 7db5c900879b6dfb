"""Plots of a report, as PNG on no ground of their own: they read on a light page and on a dark one."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diffusion.evaluation.curves import Curve
from diffusion.evaluation.distances import Extrapolation
from diffusion.evaluation.pairs import Pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#7d8590"
BLUE, ORANGE = "#3b82f6", "#d9730d"
DPI = 150


def new_chart(width: float = 8, height: float = 3.2) -> tuple[Figure, Axes]:
    """An empty plot of so many inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    return figure, axes


def finish(figure: Figure, axes: Axes, x: str, y: str, legend: bool = True) -> bytes:
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    if legend:
        axes.legend(frameon=False, labelcolor=INK)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, transparent=True, metadata={"Software": None})
    return picture.getvalue()


def plot_losses(training: Curve, validation: Curve | None = None) -> bytes:
    """A run's training loss, each logged value and smoothed; and its loss on held-out samples, if it took one."""
    figure, axes = new_chart()
    axes.plot(training.steps, training.values, color=INK, alpha=0.45, linewidth=0.8, label="each logged step")
    axes.plot(training.steps, training.smoothed(), color=BLUE, linewidth=1.8, label="smoothed")
    if validation is not None:
        axes.plot(
            validation.steps, validation.values, "o-", color=ORANGE, markersize=4, label="held out, averaged weights"
        )
    return finish(figure, axes, "step", "loss")


def plot_similarity(pairs: Pairs) -> bytes:
    """How similar pairs are, beside pairs put together at random."""
    import numpy as np

    figure, axes = new_chart()
    low, high = min(pairs.similarity.min(), pairs.random.min()), max(pairs.similarity.max(), pairs.random.max())
    bins = np.linspace(low, high + 1e-6, 41)
    for values, colour, label in ((pairs.random, INK, "random pairs"), (pairs.similarity, BLUE, "real and its sample")):
        axes.hist(values, bins=bins, color=colour, alpha=0.65, label=f"{label}, mean {values.mean():.3f}")
    return finish(figure, axes, "cosine similarity", "pairs")


def plot_extrapolation(extrapolation: Extrapolation, count: int) -> bytes:
    """Distances over one by the number of images, and the line through them to infinitely many."""
    figure, axes = new_chart()
    inverse = [1 / (share * count) for share in extrapolation.shares]
    axes.plot(inverse, extrapolation.distances, "o", color=BLUE, markersize=4, label="at shares of the images")
    slope = (extrapolation.distances[-1] - extrapolation.value) / inverse[-1]
    ends = [0, max(inverse)]
    axes.plot(ends, [extrapolation.value + slope * end for end in ends], color=INK, linewidth=1, label="extrapolated")
    axes.plot([0], [extrapolation.value], "o", color=ORANGE, label=f"infinitely many: {extrapolation.value:.4g}")
    axes.set_xlim(left=0)
    return finish(figure, axes, "1 / images", "Fréchet distance")


def plot_sweep(
    x: Sequence[float | str],
    series: Mapping[str, Sequence[tuple[float, float | None, float | None]]],
    xlabel: str,
    ylabel: str,
    more_is_better: bool,
) -> bytes:
    """A score with its interval over one setting, a line for each choice of the others; the best point is marked."""
    figure, axes = new_chart(8, 4)
    numeric = all(isinstance(value, (int, float)) for value in x)
    places = list(x) if numeric else list(range(len(x)))
    best = None
    for i, (label, points) in enumerate(series.items()):
        here = [(place, *point) for place, point in zip(places, points, strict=True) if point is not None]
        if not here:
            continue
        at, values = [point[0] for point in here], [point[1] for point in here]
        colour = f"C{i % 10}"
        axes.plot(at, values, "o-", color=colour, markersize=4, label=label)
        spans = [(point[0], point[2], point[3]) for point in here if point[2] is not None]
        axes.vlines(*zip(*spans, strict=True), color=colour, alpha=0.5) if spans else None
        own = (max if more_is_better else min)(zip(values, at, strict=True), key=lambda pair: pair[0])
        if best is None or (own[0] > best[0] if more_is_better else own[0] < best[0]):
            best = own
    if best is not None:
        axes.plot([best[1]], [best[0]], "o", color=ORANGE, markersize=11, fillstyle="none", markeredgewidth=2)
        axes.annotate(
            f"best {best[0]:.4g}", (best[1], best[0]), (0, 12), textcoords="offset points", color=ORANGE, ha="center"
        )
    if not numeric:
        axes.set_xticks(places, [str(value) for value in x])
    return finish(figure, axes, xlabel, ylabel, legend=len(series) > 1)
