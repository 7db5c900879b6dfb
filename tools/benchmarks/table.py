"""What a benchmark says: rows of ours beside a peer, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.clock import Seconds, median
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


def timed(what: str, seconds: Seconds, against: str, ours: str = "ours", **more: Any) -> Row:
    """A row of seconds: medians of the rounds, and of their ratios."""
    ratios = [peer / own for own, peer in zip(seconds[ours], seconds[against], strict=True)]
    return _of_rounds(what, "s", seconds[ours], seconds[against], against, ratios, **more)


def rated(what: str, unit: str, rates: Seconds, against: str, ours: str = "ours", **more: Any) -> Row:
    """A row of rates: medians of the rounds, and of their ratios."""
    ratios = [own / peer for own, peer in zip(rates[ours], rates[against], strict=True)]
    return _of_rounds(what, unit, rates[ours], rates[against], against, ratios, **more)


def compared(what: str, unit: str, ours: float, peer: float, against: str, **more: Any) -> Row:
    """A row of bytes, or whatever one reading is enough for."""
    return Row(what, unit, ours, peer, against, ours / peer, **more)


def _of_rounds(
    what: str, unit: str, ours: Sequence[float], peer: Sequence[float], against: str, ratios: list[float], **more: Any
) -> Row:
    spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
    return Row(what, unit, median(ours), median(peer), against, median(ratios), spread, **more)


HEAD = ("what", "", "ours", "peer", "against", "ratio", "of rounds", "of the machine's rate", "max. difference")


def as_table(rows: Sequence[Row]) -> str:
    return format_table([HEAD, *(["  " * bool(row.part_of) + row.what, row.unit, *_cells(row)] for row in rows)])


def in_a_line(row: Row) -> str:
    """What is told of a row as soon as it is measured."""
    told = [f"{'  ' * bool(row.part_of)}{row.what}: {_digits(row.ours)} {row.unit}"]
    if row.ratio is not None:
        told.append(f"{row.ratio:.2f} x ({row.against}: {_digits(row.peer)})")
    if row.share is not None:
        told.append(f"{row.share:.0%} of the machine's rate")
    return ", ".join(told)


def _cells(row: Row) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    numbers = [_digits(row.ours), "" if row.peer is None else _digits(row.peer), row.against, shown(row.ratio, ".2f")]
    spread = "" if row.spread is None else "{:.2f} to {:.2f}".format(*row.spread)
    return [*numbers, spread, shown(row.share, ".0%"), shown(row.off, ".0e")]


def _digits(value: float) -> str:
    """Three of them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
