"""The colours and axes of pictures on white, and their PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
# Distinguishable with any colour vision (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK, SOFT, FAINT = "#24292f", "#6e7781", "#d8dee4"


def style_axes(axes: Axes, title: str) -> None:
    """Give axes a title at the left, soft spines and faint horizontal lines."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(which="both", colors=SOFT)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def figure_png(figure: Figure, dpi: int = DPI, transparent: bool = False) -> bytes:
    """Return a figure as PNG: the same bytes for the same figure."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    return picture.getvalue()
