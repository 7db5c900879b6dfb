"""What a benchmark says: rows of ours beside a peer, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffusion.bench.clock import Seconds, median, ratio
from diffusion.cli import columns


@dataclass(frozen=True)
class Row:
    """One figure. Times have the ratio peer / ours, rates and bytes ours / peer: what is measured says which is better.

    share: of the machine's own rate of matrix products; off: the largest difference of the two outputs over the largest
    value of the peer's.
    """

    what: str
    unit: str
    ours: float
    peer: float | None = None
    against: str = ""
    ratio: float | None = None
    share: float | None = None
    off: float | None = None


def timed(what: str, seconds: Seconds, against: str, ours: str = "ours", **more: float | None) -> Row:
    """A row of seconds: medians of the rounds, and of their ratios."""
    of_ours, of_peer = seconds[ours], seconds[against]
    return Row(what, "s", median(of_ours), median(of_peer), against, ratio(of_peer, of_ours), **more)


def compared(what: str, unit: str, ours: float, peer: float, against: str, off: float | None = None) -> Row:
    """A row of rates or bytes."""
    return Row(what, unit, ours, peer, against, ours / peer, off=off)


HEAD = ("what", "", "ours", "peer", "against", "ratio", "of the machine's rate", "off")


def as_table(rows: Sequence[Row]) -> str:
    return columns([HEAD, *([row.what, row.unit, *_cells(row)] for row in rows)])


def in_a_line(row: Row) -> str:
    """What is told of a row as soon as it is measured."""
    told = [f"{row.what}: {_digits(row.ours)} {row.unit}"]
    if row.ratio is not None:
        told.append(f"{row.ratio:.2f} x ({row.against}: {_digits(row.peer)})")
    if row.share is not None:
        told.append(f"{row.share:.0%} of the machine's rate")
    return ", ".join(told)


def _cells(row: Row) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    numbers = [_digits(row.ours), "" if row.peer is None else _digits(row.peer), row.against]
    return [*numbers, shown(row.ratio, ".2f"), shown(row.share, ".0%"), shown(row.off, ".0e")]


def _digits(value: float) -> str:
    """Three of them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
