"""The curves of one or several runs in one picture: a panel a quantity, a colour a run."""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion.evaluation.reports.curves import Curve
from diffusion.evaluation.reports.style import COLOURS, DPI, FAINT, INK, SOFT
from diffusion.utils.errors import InputError
from diffusion.utils.text import format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2
PANEL = (800, 400)  # pixels, width and height
LEGEND_ROW = 28  # pixels
LETTER, HANDLE = 9, 70  # pixels of a letter of the legend, and of the line before a name
DASHES = (0, (4, 2))
FEW = 60  # points of a sparse curve, up to which each is marked

Runs = Mapping[str, Mapping[str, Curve]]  # name of a run -> tag -> curve


@dataclass(frozen=True)
class Quantity:
    """What a tag is called, and how it is drawn."""

    label: str
    is_loss: bool = False
    every_step: bool = True  # logged all along; else at a few steps, which are marked
    noisy: bool = False  # the smoothed curve is strong, the values themselves are faint
    logarithmic: bool = False
    from_zero: bool = False
    share: bool = False  # of 1, told in per cent
    if_any: bool = False  # nothing to see while all values are 0


@dataclass(frozen=True)
class Panel:
    """Axes of one tag or two; the second is dashed, and a share that is second has its own axis at the right."""

    tags: tuple[str, ...]
    logarithmic: bool = False


QUANTITIES = {
    "train/loss": Quantity("training loss", is_loss=True, noisy=True),
    "train/mse": Quantity("training loss: mse", is_loss=True, noisy=True),
    "train/vb": Quantity("training loss: variational bound", is_loss=True, noisy=True),
    "validation/loss": Quantity("validation loss", is_loss=True, every_step=False),
    "validation/mse": Quantity("validation loss: mse", is_loss=True, every_step=False),
    "validation/vb": Quantity("validation loss: variational bound", is_loss=True, every_step=False),
    "evaluation/fd": Quantity("Fréchet distance of samples", every_step=False),
    "evaluation/kid": Quantity("kernel distance of samples × 1000", every_step=False),
    "evaluation/similarity": Quantity("similarity of pairs", every_step=False),
    "evaluation/above_random": Quantity("pairs above random", every_step=False),
    "train/grad_norm": Quantity("gradient norm", noisy=True, logarithmic=True),
    "train/lr": Quantity("learning rate", from_zero=True),
    "train/samples_per_second": Quantity("samples per second", noisy=True, from_zero=True),
    "train/data_wait": Quantity("time waiting for data, %", noisy=True, share=True),
    "train/memory_gb": Quantity("memory, GB", from_zero=True),
    "train/bad_items": Quantity("items that could not be read", from_zero=True, if_any=True),
    "train/skipped_steps": Quantity("skipped steps", from_zero=True, if_any=True),
}
STANDARD = (
    ("train/loss",),
    ("validation/loss",),
    ("evaluation/fd",),
    ("evaluation/similarity",),
    ("train/grad_norm",),
    ("train/lr",),
    ("train/samples_per_second", "train/data_wait"),
    ("train/memory_gb",),
    ("train/bad_items", "train/skipped_steps"),
)


def quantity(tag: str) -> Quantity:
    """Of a tag that is not described: its name, and its values as they are."""
    return QUANTITIES.get(tag, Quantity(tag, every_step=False))


def choose_panels(runs: Runs, tags: Sequence[str] | None = None, log_loss: bool = False) -> list[Panel]:
    """A panel for each of `tags`, else the standard ones, of what some run has.

    Raises InputError for a tag that no run has, and when there is nothing to draw.
    """
    there = sorted({tag for curves in runs.values() for tag in curves})
    if tags is not None:
        for tag in tags:
            if tag not in there:
                near = difflib.get_close_matches(tag, there, n=1)
                hint = f", did you mean {near[0]}?" if near else ""
                raise InputError(f"--tags: no run has {tag}{hint} (there are {', '.join(there)})")
        chosen = [(tag,) for tag in dict.fromkeys(tags)]
    else:
        seen = {tag for tag in there if not quantity(tag).if_any or any(_values(runs, tag))}
        chosen = [tuple(tag for tag in panel if tag in seen) for panel in STANDARD]
        chosen = [panel for panel in chosen if panel]
        if not chosen:
            raise InputError(
                f"no run has a tag of the usual panels; name with --tags what to draw of {', '.join(there)}"
            )
    return [Panel(panel, _is_logarithmic(runs, panel[0], log_loss)) for panel in chosen]


def _values(runs: Runs, tag: str) -> Iterator[float]:
    return (value for curves in runs.values() if tag in curves for value in curves[tag].values)


def _is_logarithmic(runs: Runs, tag: str, log_loss: bool) -> bool:
    """Whether a logarithmic axis is wanted, and possible: something is above 0."""
    wanted = quantity(tag).logarithmic or (log_loss and quantity(tag).is_loss)
    return wanted and any(0 < value < math.inf for value in _values(runs, tag))


def picture_size(names: Sequence[str], panels: Sequence[Panel]) -> tuple[int, int]:
    """Width and height in pixels of the picture of these runs and panels."""
    columns = min(COLUMNS, len(panels))
    legend_rows = math.ceil(len(names) / _legend_columns(names, columns))
    return columns * PANEL[0], math.ceil(len(panels) / columns) * PANEL[1] + (legend_rows + 1) * LEGEND_ROW


def _legend_columns(names: Sequence[str], columns: int) -> int:
    room = columns * PANEL[0] // (LETTER * max(map(len, names)) + HANDLE)
    return max(1, min(len(names), room))


def draw(runs: Runs, panels: Sequence[Panel]) -> bytes:
    """The picture, as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    width, height = picture_size(list(runs), panels)
    columns = min(COLUMNS, len(panels))
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    colours = dict(zip(runs, pick_colours(len(runs)), strict=True))
    limits = _step_limits(runs, panels)
    grid = figure.add_gridspec(math.ceil(len(panels) / columns), columns)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(grid[divmod(i, columns)])
        _draw_panel(axes, panel, runs, colours)
        axes.set_xlim(limits)
        if i + columns >= len(panels):  # nothing is below
            axes.set_xlabel("step", color=SOFT)
    figure.legend(
        handles=[Line2D([], [], color=colour, linewidth=2.5, label=name) for name, colour in colours.items()],
        loc="outside upper left",
        ncols=_legend_columns(list(runs), columns),
        frameon=False,
        labelcolor=INK,
        fontsize=11,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return picture.getvalue()


def pick_colours(count: int) -> list[Any]:
    """A colour for each run; when there are more than can be told apart easily, evenly from a rainbow."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return [colormaps["turbo"](0.05 + 0.9 * i / (count - 1)) for i in range(count)]


def _step_limits(runs: Runs, panels: Sequence[Panel]) -> tuple[float, float]:
    """The same for all panels, so that what is above one another happened at the same time."""
    shown = {tag for panel in panels for tag in panel.tags}
    curves = [curve for of_run in runs.values() for tag, curve in of_run.items() if tag in shown]
    first, last = min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves)
    margin = 0.02 * (last - first) or 1
    return first - margin, last + margin


def _draw_panel(axes: Axes, panel: Panel, runs: Runs, colours: Mapping[str, Any]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    _style(axes, panel)
    for position, tag in enumerate(panel.tags):
        at_right = position > 0 and quantity(tag).share
        own = _right_axes(axes) if at_right else axes
        for i, (name, curves) in enumerate(runs.items()):
            if tag in curves:
                covered = (len(runs) - 1 - i) / len(runs)  # the share of runs that are drawn over this one
                _draw_curve(own, curves[tag], tag, colours[name], panel.logarithmic, position > 0, covered)
        _fit_values(own, tag, panel.logarithmic and not at_right)
    if not all(math.isfinite(value) for tag in panel.tags for value in _values(runs, tag)):
        axes.set_title("× not finite", loc="right", fontsize=9, color=SOFT)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _style(axes: Axes, panel: Panel) -> None:
    labels = [quantity(tag).label for tag in panel.tags]
    title = labels[0] if len(labels) == 1 else f"{labels[0]} (line), {labels[1]} (dashed)"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(which="both", colors=SOFT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _right_axes(axes: Axes) -> Axes:
    right = axes.twinx()
    right.spines[["top", "left", "bottom"]].set_visible(False)
    right.spines["right"].set_color(SOFT)
    right.tick_params(colors=SOFT)
    return right


def _draw_curve(
    axes: Axes, curve: Curve, tag: str, colour: Any, logarithmic: bool, dashed: bool, covered: float
) -> None:
    what = quantity(tag)
    values = [_drawable(value, what, logarithmic) for value in curve.values]
    width = 1.2 if dashed else 1.8
    if what.noisy:
        if not dashed:  # the second of a panel stays thin
            axes.plot(curve.steps, values, color=colour, linewidth=0.8, alpha=0.3)
        values = _smoothed(curve.steps, values, logarithmic)
    else:  # runs may be the same here: the lower ones show at the sides of the upper ones
        width += 1.5 * covered
    marked = len(curve.steps) == 1 or (not what.every_step and len(curve.steps) <= FEW)
    style = dict(linestyle=DASHES if dashed else "-", marker="o" if marked else None, markersize=2 + width)
    axes.plot(curve.steps, values, color=colour, linewidth=width, **style)
    lost = [step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)]
    if lost:  # at the top of the panel, since they have no place on the axis
        axes.plot(lost, [0.97] * len(lost), "x", color=colour, markersize=5, transform=axes.get_xaxis_transform())


def _smoothed(steps: list[int], values: list[float], logarithmic: bool) -> list[float]:
    """Running means; of the logarithms on a logarithmic axis, where one spike would lift all around it."""
    if not logarithmic:
        return Curve(steps, values).smoothed()
    return [math.exp(value) for value in Curve(steps, [math.log(value) for value in values]).smoothed()]


def _drawable(value: float, what: Quantity, logarithmic: bool) -> float:
    """The value as drawn; not a number where the axis has no place for it."""
    if not math.isfinite(value) or (logarithmic and value <= 0):
        return math.nan
    return 100 * value if what.share else value


def _fit_values(axes: Axes, tag: str, logarithmic: bool) -> None:
    """Scale, limits and ticks of the upright axis, once all curves are drawn."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

    what = quantity(tag)
    if what.share:
        axes.set_ylim(0, 100)
    elif logarithmic:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        widen = max(1.0, math.sqrt(4 / (high / low)))  # a narrow range would hold no tick
        axes.set_ylim(low / widen, high * widen)
        decades = math.log10(high / low)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if what.from_zero:
            axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
    plain = not logarithmic and 1e-3 <= max(map(abs, axes.get_ylim())) < 1e5
    ticks = ScalarFormatter(useOffset=False) if plain else FuncFormatter(lambda value, _: format_number(value))
    axes.yaxis.set_major_formatter(ticks)
