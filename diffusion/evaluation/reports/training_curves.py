"""The curves of one or several runs in one picture: a panel for each quantity, a colour for each run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from typing import TYPE_CHECKING, Any

from diffusion.evaluation.metrics.quantities import CURVES
from diffusion.evaluation.reports.curves import Curve, read_curves
from diffusion.evaluation.reports.style import COLOURS, DPI, INK, SOFT, figure_png, style_axes
from diffusion.utils.errors import InputError
from diffusion.utils.text import format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, PANEL = 2, (800, 400)  # panels side by side; width and height of each in pixels
LEGEND_ROW, LETTER, HANDLE = 28, 9, 70  # pixels: a row of the legend, a letter of it, the line before a name
MARKED_POINTS = 60  # of a sparse curve with no more points each is marked
SUMMARY_HEAD = ("run", "last step", "last loss", "best validation", "at step", "samples/s")  # of `summary_row`

Runs = Mapping[str, Mapping[str, Curve]]  # name of a run -> tag -> curve


@dataclass(frozen=True)
class TagStyle:
    """What a TensorBoard tag is called, and how its curve is plotted."""

    label: str
    is_loss: bool = False
    sparse: bool = False  # logged at a few steps, which are marked
    noisy: bool = False  # the values are faint, and their running mean is strong
    logarithmic: bool = False
    from_zero: bool = False
    percent: bool = False  # a share of 1
    if_any: bool = False  # no panel while all values are 0


@dataclass(frozen=True)
class CurvePanel:
    """Axes of one tag or two; the second is dashed and, if it is a percentage, has an axis of its own at the right."""

    tags: tuple[str, ...]
    logarithmic: bool = False


STYLES = {
    "train/loss": TagStyle("training loss", is_loss=True, noisy=True),
    "train/mse": TagStyle("training loss: mse", is_loss=True, noisy=True),
    "train/vb": TagStyle("training loss: variational bound", is_loss=True, noisy=True),
    "validation/loss": TagStyle("validation loss", is_loss=True, sparse=True),
    "validation/mse": TagStyle("validation loss: mse", is_loss=True, sparse=True),
    "validation/vb": TagStyle("validation loss: variational bound", is_loss=True, sparse=True),
    **{f"evaluation/{name}": TagStyle(label, sparse=True) for name, label in CURVES.items()},
    "train/grad_norm": TagStyle("gradient norm", noisy=True, logarithmic=True),
    "train/lr": TagStyle("learning rate", from_zero=True),
    "train/samples_per_second": TagStyle("samples per second", noisy=True, from_zero=True),
    "train/tflops": TagStyle("TFLOP/s of a processor", noisy=True, from_zero=True),
    "train/mfu": TagStyle("share of the processor's peak, %", noisy=True, percent=True),
    "train/data_wait": TagStyle("time waiting for data, %", noisy=True, percent=True),
    "train/memory_gb": TagStyle("memory, GB", from_zero=True),
    "train/bad_items": TagStyle("items that could not be read", from_zero=True, if_any=True),
    "train/skipped_steps": TagStyle("skipped steps", from_zero=True, if_any=True),
}
STANDARD_PANELS = (
    *(("train/loss",), ("validation/loss",), ("evaluation/fd",), ("evaluation/similarity",)),
    *(("train/grad_norm",), ("train/lr",), ("train/samples_per_second", "train/data_wait"), ("train/memory_gb",)),
    ("train/bad_items", "train/skipped_steps"),
)


def style_of(tag: str) -> TagStyle:
    """Return the style of a tag; one that is not known is called by its name, and plotted as it is."""
    return STYLES.get(tag, TagStyle(tag, sparse=True))


def choose_panels(runs: Runs, tags: Sequence[str] | None = None, log_loss: bool = False) -> list[CurvePanel]:
    """Return a panel for each of `tags`, else the standard ones, of what some run has.

    log_loss: plot losses on logarithmic axes. Raises InputError for a tag that no run has, and when nothing is left.
    """
    known = sorted({tag for curves in runs.values() for tag in curves})
    for tag in tags or ():
        if tag not in known:
            near = difflib.get_close_matches(tag, known, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise InputError(f"--tags: no run has {tag}{hint} (there are {', '.join(known)})")
    if tags is not None:
        chosen = [(tag,) for tag in dict.fromkeys(tags)]
    else:
        seen = {tag for tag in known if not style_of(tag).if_any or any(_values(runs, tag))}
        panels = (tuple(tag for tag in panel if tag in seen) for panel in STANDARD_PANELS)
        chosen = [panel for panel in panels if panel]
    if not chosen:
        raise InputError(f"no run has a tag of the usual panels; name with --tags what to draw of {', '.join(known)}")

    def is_logarithmic(tag: str) -> bool:
        wanted = style_of(tag).logarithmic or (log_loss and style_of(tag).is_loss)
        return wanted and any(0 < value < math.inf for value in _values(runs, tag))

    return [CurvePanel(panel, is_logarithmic(panel[0])) for panel in chosen]


def _values(runs: Runs, tag: str) -> Iterator[float]:
    return (value for curves in runs.values() if tag in curves for value in curves[tag].values)


def picture_size(names: Sequence[str], panels: Sequence[CurvePanel]) -> tuple[int, int]:
    """Return width and height, in pixels, of the picture of these runs and panels."""
    columns = min(COLUMNS, len(panels))
    legend_rows = math.ceil(len(names) / _legend_columns(names, columns))
    return columns * PANEL[0], math.ceil(len(panels) / columns) * PANEL[1] + (legend_rows + 1) * LEGEND_ROW


def _legend_columns(names: Sequence[str], columns: int) -> int:
    return max(1, min(len(names), columns * PANEL[0] // (LETTER * max(map(len, names)) + HANDLE)))


def plot_curves(runs: Runs, panels: Sequence[CurvePanel]) -> bytes:
    """Return the picture of all panels, as PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D

    width, height = picture_size(list(runs), panels)
    columns = min(COLUMNS, len(panels))
    figure = Figure(
        figsize=(width / DPI, height / DPI),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
        facecolor="white",
    )
    many = [colormaps["turbo"](0.05 + 0.9 * i / max(len(runs) - 1, 1)) for i in range(len(runs))]
    colours = dict(zip(runs, COLOURS if len(runs) <= len(COLOURS) else many, strict=False))
    steps = [step for curves in runs.values() for panel in panels for tag in panel.tags if tag in curves
             for step in curves[tag].steps]  # fmt: skip
    margin = 0.02 * (max(steps) - min(steps)) or 1
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, i + 1)
        _plot_panel(axes, panel, runs, colours)
        axes.set_xlim(min(steps) - margin, max(steps) + margin)  # the same everywhere: what is in line was at one time
        if i + columns >= len(panels):  # nothing is below
            axes.set_xlabel("step", color=SOFT)
    handles = [Line2D([], [], color=colour, linewidth=2.5, label=name) for name, colour in colours.items()]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=_legend_columns(list(runs), columns),
        frameon=False,
        labelcolor=INK,
        fontsize=11,
    )
    return figure_png(figure)


def _plot_panel(axes: Axes, panel: CurvePanel, runs: Runs, colours: Mapping[str, Any]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    labels = [style_of(tag).label for tag in panel.tags]
    style_axes(axes, labels[0] if len(labels) == 1 else f"{labels[0]} (line), {labels[1]} (dashed)")
    for position, tag in enumerate(panel.tags):
        own, logarithmic = axes, panel.logarithmic
        if position > 0 and style_of(tag).percent:
            own, logarithmic = axes.twinx(), False
            own.spines[["top", "left", "bottom"]].set_visible(False)
            own.spines["right"].set_color(SOFT)
            own.tick_params(colors=SOFT)
        for i, (name, curves) in enumerate(runs.items()):
            if tag in curves:  # runs may be equal here: the lower ones are wider, and show beside the upper ones
                wider = 0 if style_of(tag).noisy else 1.5 * (len(runs) - 1 - i) / len(runs)
                _plot_curve(own, curves[tag], style_of(tag), colours[name], logarithmic, position > 0, wider)
        _scale_values(own, style_of(tag), logarithmic)
    if not all(math.isfinite(value) for tag in panel.tags for value in _values(runs, tag)):
        axes.set_title("× not finite", loc="right", fontsize=9, color=SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _plot_curve(
    axes: Axes, curve: Curve, style: TagStyle, colour: Any, logarithmic: bool, dashed: bool, wider: float
) -> None:
    usable = [math.isfinite(value) and (value > 0 or not logarithmic) for value in curve.values]
    scale = 100 if style.percent else 1
    values = [scale * value if is_usable else math.nan for value, is_usable in zip(curve.values, usable, strict=True)]
    if style.noisy:
        if not dashed:  # the second of a panel has its mean alone
            axes.plot(curve.steps, values, color=colour, linewidth=0.8, alpha=0.3)
        if logarithmic:  # means of logarithms, since one spike would lift the mean of all values around it
            logarithms = Curve(curve.steps, [math.log(value) for value in values])
            values = [math.exp(value) for value in logarithms.smoothed()]
        else:
            values = Curve(curve.steps, values).smoothed()
    marked = len(curve.steps) == 1 or (style.sparse and len(curve.steps) <= MARKED_POINTS)
    width = (1.2 if dashed else 1.8) + wider
    line, marker = (0, (4, 2)) if dashed else "-", "o" if marked else None
    axes.plot(curve.steps, values, color=colour, linestyle=line, linewidth=width, marker=marker, markersize=2 + width)
    lost = [step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)]
    if lost:  # at the top of the panel, since they have no place on the axis
        axes.plot(lost, [0.97] * len(lost), "x", color=colour, markersize=5, transform=axes.get_xaxis_transform())


def _scale_values(axes: Axes, style: TagStyle, logarithmic: bool) -> None:
    """Set scale, limits and ticks of the y axis, once all its curves are plotted."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if logarithmic:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        widen = max(1.0, math.sqrt(4 / (high / low)))  # a narrow range would hold no tick
        axes.set_ylim(low / widen, high * widen)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if style.percent or style.from_zero:
            axes.set_ylim(0, 100 if style.percent else 1.04 * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))


def load_curves(workdir: Path, from_step: int) -> dict[str, Curve]:
    """Read the curves of a run from a step on, by tag.

    Raises InputError when nothing is left.
    """
    complete = read_curves(workdir)
    if not complete:
        raise InputError(f"{workdir} has TensorBoard files but no curve in them: nothing was logged yet; leave it out")
    last = max(curve.steps[-1] for curve in complete.values())
    if last < from_step:
        raise InputError(f"--from-step {from_step}: {workdir} ends at step {last}; take a smaller step or leave it out")
    curves = {tag: curve.tail(from_step) for tag, curve in complete.items()}
    return {tag: curve for tag, curve in curves.items() if curve.steps}


def summary_row(name: str, curves: Mapping[str, Curve]) -> tuple[str, ...]:
    """Return a run's row of the table, with a dash for what was not logged."""
    losses = curves["train/loss"].values if "train/loss" in curves else []
    last = format_number(losses[-1]) if losses else "-"
    best, at = "-", "-"
    if "validation/loss" in curves:
        validation = curves["validation/loss"]
        finite = [point for point in zip(validation.values, validation.steps, strict=True) if math.isfinite(point[0])]
        if finite:
            value, step = min(finite)
            best, at = format_number(value), f"{step:,}"
    # Each value is of as many samples, so that only their harmonic mean is all samples over all seconds.
    rates = curves["train/samples_per_second"].values if "train/samples_per_second" in curves else []
    rates = [rate for rate in rates if 0 < rate < math.inf]
    steps = max(curve.steps[-1] for curve in curves.values())
    return name, f"{steps:,}", last, best, at, format_number(harmonic_mean(rates)) if rates else "-"
