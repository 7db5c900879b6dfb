"""Results of a benchmark: rows of ours beside a peer, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.clock import Seconds
from diffusion.utils.text import format_table


@dataclass(frozen=True)
class Row:
    """One figure. Times have the ratio peer / ours, everything else ours / peer.

    spread: the least and the largest ratio of a round; part_of: the row that this is a part of; share: of the machine's own
    rate of matrix products; off: the largest difference of the two outputs over the largest value of the peer's.
    """

    what: str
    unit: str
    ours: float
    peer: float | None = None
    against: str = ""
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    share: float | None = None
    off: float | None = None
    part_of: str = ""


def time_row(what: str, seconds: Seconds, against: str, ours: str = "ours", **more: Any) -> Row:
    """Return a row of seconds: medians of the rounds, and of their ratios."""
    ratios = [peer / own for own, peer in zip(seconds[ours], seconds[against], strict=True)]
    return _ratio_row(what, "s", seconds[ours], seconds[against], against, ratios, **more)


def rate_row(what: str, unit: str, rates: Seconds, against: str, ours: str = "ours", **more: Any) -> Row:
    """Return a row of rates: medians of the rounds, and of their ratios."""
    ratios = [own / peer for own, peer in zip(rates[ours], rates[against], strict=True)]
    return _ratio_row(what, unit, rates[ours], rates[against], against, ratios, **more)


def compare_row(what: str, unit: str, ours: float, peer: float, against: str, **more: Any) -> Row:
    """Return a row of bytes, or of anything else that one reading is enough for."""
    return Row(what, unit, ours, peer, against, ours / peer, **more)


def _ratio_row(
    what: str, unit: str, ours: Sequence[float], peer: Sequence[float], against: str, ratios: list[float], **more: Any
) -> Row:
    spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
    return Row(what, unit, median(ours), median(peer), against, median(ratios), spread, **more)


HEAD = ("what", "", "ours", "peer", "against", "ratio", "of rounds", "of the machine's rate", "max. difference")


def format_rows(rows: Sequence[Row]) -> str:
    """Return a table of rows."""
    return format_table([HEAD, *(["  " * bool(row.part_of) + row.what, row.unit, *_cells(row)] for row in rows)])


def format_row(row: Row) -> str:
    """Return a line about a row, to print as soon as it is measured."""
    parts = [f"{'  ' * bool(row.part_of)}{row.what}: {_format_number(row.ours)} {row.unit}"]
    if row.ratio is not None and row.peer is not None:
        parts.append(f"{row.ratio:.2f} x ({row.against}: {_format_number(row.peer)})")
    if row.share is not None:
        parts.append(f"{row.share:.0%} of the machine's rate")
    return ", ".join(parts)


def _cells(row: Row) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    numbers = [
        _format_number(row.ours),
        "" if row.peer is None else _format_number(row.peer),
        row.against,
        shown(row.ratio, ".2f"),
    ]
    spread = "" if row.spread is None else "{:.2f} to {:.2f}".format(*row.spread)
    return [*numbers, spread, shown(row.share, ".0%"), shown(row.off, ".0e")]


def _format_number(value: float) -> str:
    """Format with three significant digits; from 100 on, as a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
