"""95 % intervals by the bootstrap (Efron 1979): the spread of a value over samples drawn again, with repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

Z95 = 1.959964  # standard errors to either side
REPLICATES = 1000


class Interval(NamedTuple):
    low: float
    high: float


class Value(NamedTuple):
    """A number with its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def normal_ci(value: float, error: float, least: float = -np.inf, most: float = np.inf) -> Interval:
    """The interval of a value with a standard error, within what the value can be."""
    return Interval(max(value - Z95 * error, least), min(value + Z95 * error, most))


def mean_ci(values: np.ndarray, seed: int = 0, replicates: int = 2000) -> Interval:
    """Return the interval of the mean of two or more values (n,), by the percentile bootstrap.

    Of more than 10,000 values the mean is as good as normal, and its standard error is taken.
    """
    from scipy import stats  # takes a second to import

    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    if count > 10_000:
        return normal_ci(float(values.mean()), float(values.std(ddof=1) / count**0.5))
    settings = dict(n_resamples=replicates, batch=100, method="percentile", random_state=np.random.default_rng(seed))
    bounds = stats.bootstrap((values,), np.mean, **settings).confidence_interval
    return Interval(float(bounds.low), float(bounds.high))


def wilson_ci(hits: int, count: int) -> Interval:
    """Return the interval of a share, `hits` of `count` (Wilson 1927): it has a width where the share is 0 or 1, too."""
    from scipy import stats

    bounds = stats.binomtest(hits, count).proportion_ci(method="wilson")
    return Interval(float(bounds.low), float(bounds.high))


def bootstrap_deviations(
    distance: Callable[[torch.Tensor, torch.Tensor], float],
    real: torch.Tensor,
    synthetic: torch.Tensor,
    replicates: int,
    seed: int = 0,
) -> np.ndarray:
    """A distance over sets drawn again from rows (N, D) and (M, D), less its mean: (replicates,).

    Only the spread is of use: repeats make a set of fewer different rows, whose distances lie higher. For the Frechet
    distance of fewer rows than columns it is 1.3 (rows a seventh of columns) to 2.2 times (as many) too wide.
    """
    picks = list(draw_resamples((len(real), len(synthetic)), replicates, seed))
    values = []
    for pick in tqdm(picks, desc="interval", unit="replicate", leave=False, delay=3):
        again = (rows[torch.from_numpy(own).to(rows.device)] for rows, own in zip((real, synthetic), pick, strict=True))
        values.append(distance(*again))
    return np.array(values) - np.mean(values)


def draw_resamples(counts: Sequence[int], replicates: int, seed: int) -> Iterator[list[np.ndarray]]:
    """For each replicate the numbers of the rows of each set, drawn with repeats; the same for the same counts and seed."""
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        yield [generator.integers(0, count, count) for count in counts]


def mean_value(values: np.ndarray, seed: int) -> Value:
    return Value(float(values.mean()), *mean_ci(values, seed))


@dataclass(frozen=True)
class ClusterBootstrap:
    """A set drawn again and again, whole groups at once: each time the weights of its rows.

    The same seed gives the same draws, so that differences of scores are taken on the same images.
    """

    groups: np.ndarray  # (M,) names
    seed: int = 0
    replicates: int = REPLICATES

    def __iter__(self) -> Iterator[np.ndarray]:
        """Weights (M,): first of the set as it is, all 1; then, of two groups or more, how often that of each row was drawn."""
        yield np.ones(len(self.groups))
        names, numbers = np.unique(self.groups, return_inverse=True)
        generator = np.random.default_rng(self.seed)
        for _ in range(self.replicates if len(names) > 1 else 0):
            times = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
            yield times[numbers].astype(np.float64)


def summarize_resamples(values: np.ndarray) -> Value:
    """The first of (1 + R,) values, and the percentiles of the others; none where these are no numbers."""
    others = values[1:][np.isfinite(values[1:])]
    bounds = np.percentile(others, (2.5, 97.5)).tolist() if len(others) else (None, None)
    return Value(float(values[0]), *bounds)
