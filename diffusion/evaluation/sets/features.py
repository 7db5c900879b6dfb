"""Rows of features of one encoder, read part by part. Letters: N rows, one a window of 256; D width of the embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

PART_ROWS = 256  # rows in memory at once, where they do not come in parts of files


class Row(NamedTuple):
    """The image that a row of features belongs to: the name of a file and the number of a window in it."""

    name: str
    window: int = 0


@dataclass(frozen=True)
class Features:
    """Features of one encoder, (N, D) in float32, of which no more than one part is in memory at once.

    parts: functions that load each part. lengths: rows of each part. bad: names of files that have no row, and the reasons.
    formats: the number of files of each image format.
    """

    rows: Sequence[Row]
    width: int
    parts: Sequence[Callable[[], np.ndarray]]
    lengths: Sequence[int]
    encoder: str
    bad: dict[str, str] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def from_tensor(cls, values: torch.Tensor, encoder: str = "") -> Features:
        """Wrap features (N, D) that are in memory; rows are named by their numbers."""
        array = values.float().cpu().numpy()
        rows = [Row(str(i)) for i in range(len(array))]
        return cls(rows, array.shape[1], [lambda: array], [len(array)], encoder)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the rows part by part, float32 (n, D)."""
        for load in self.parts:
            yield torch.from_numpy(load())

    def take(self, numbers: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return the rows of these numbers, float32 (n, D), in the order of the numbers."""
        numbers = np.asarray(numbers, dtype=np.int64)
        taken = np.empty((len(numbers), self.width), dtype=np.float32)
        first = 0
        for load, length in zip(self.parts, self.lengths, strict=True):
            here = np.flatnonzero((numbers >= first) & (numbers < first + length))
            if len(here):
                taken[here] = load()[numbers[here] - first]
            first += length
        return torch.from_numpy(taken)

    def sample(self, count: int, seed: int) -> torch.Tensor:
        """Return all rows when there are no more than `count`, else as many drawn without replacement, in their order."""
        if len(self) <= count:
            return self.take(range(len(self)))
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False)))
