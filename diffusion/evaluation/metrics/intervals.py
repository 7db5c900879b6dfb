"""95 % confidence intervals, and the bootstrap (Efron 1979): the spread of a value over resamples with replacement.

Letters: n values, N and M rows of two sets, D width of a row, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

Z95 = 1.959964  # standard errors to either side
MEAN_RESAMPLES = 2000
MANY_VALUES = 10_000  # of which the mean is as good as normal
CLUSTER_RESAMPLES = 1000
PAIR_RESAMPLES = 1000  # of windows, or pairs of these
FEWEST_PAIRS = 10  # of which a correlation is taken
FEW_GROUPS = 20  # with fewer, percentiles of the bootstrap are known to be too narrow


class Interval(NamedTuple):
    """The two ends of a 95 % interval."""

    low: float
    high: float


class Value(NamedTuple):
    """A number with its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def normal_ci(value: float, error: float, least: float = -np.inf, most: float = np.inf) -> Interval:
    """Return the interval of a value with a standard error, cut to the range of what the value can be."""
    return Interval(max(value - Z95 * error, least), min(value + Z95 * error, most))


def mean_ci(values: np.ndarray, seed: int = 0, replicates: int = MEAN_RESAMPLES) -> Interval:
    """Return the interval of the mean of two or more values (n,), by the percentile bootstrap.

    The mean of more than 10,000 values is as good as normal, and its standard error is used instead.
    """
    from scipy import stats  # takes a second to import

    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    if count > MANY_VALUES:
        return normal_ci(float(values.mean()), float(values.std(ddof=1) / count**0.5))
    generator = np.random.default_rng(seed)
    result = stats.bootstrap((values,), np.mean, n_resamples=replicates, batch=100, method="percentile", rng=generator)
    return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))


def mean_value(values: np.ndarray, seed: int, groups: np.ndarray | None = None) -> Value:
    """Return the mean of two or more values (n,) with its interval.

    groups: numbers (n,) of what is resampled as a whole, such as the image of a window; None: every value for itself, as
    with groups of one value each. The mean of more than 10,000 groups has a standard error instead, that of the ratio of their sums
    to their numbers of values. A single group gives no interval.
    """
    if groups is None:
        return Value(float(values.mean()), *mean_ci(values, seed))
    mean = float(values.mean())
    numbers = np.unique(groups, return_inverse=True)[1]
    if (count := int(numbers.max()) + 1) > MANY_VALUES:
        deviations = np.bincount(numbers, values - mean)
        return Value(mean, *normal_ci(mean, (count / (count - 1) * (deviations**2).sum()) ** 0.5 / len(values)))
    resamples = ClusterBootstrap(groups, seed, MEAN_RESAMPLES)
    return percentile_value(np.array([np.average(values, weights=weights) for weights in resamples]))


def wilson_ci(hits: int, count: int) -> Interval:
    """Return the interval of the share `hits / count` (Wilson 1927), which has a width at shares of 0 and 1, too."""
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
    """Return a distance between resamples of rows (N, D) and (M, D), less its mean over the resamples: (replicates,).

    Only the spread is of use: a resample has fewer different rows, and its distances are larger. For the Frechet
    distance of fewer rows than columns the spread is 1.3 (rows a seventh of columns) to 2.2 times (as many) too wide.
    """
    resamples = list(draw_resamples((len(real), len(synthetic)), replicates, seed))
    distances = []
    for numbers in tqdm(resamples, desc="interval", unit="replicate", leave=False, delay=3):
        rows_real, rows_synthetic = (torch.from_numpy(own) for own in numbers)
        distances.append(distance(real[rows_real.to(real.device)], synthetic[rows_synthetic.to(synthetic.device)]))
    return np.array(distances) - np.mean(distances)


def draw_resamples(counts: Sequence[int], replicates: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Yield for each replicate the row numbers of each set, drawn with replacement.

    The same counts and seed give the same draws, so that differences of scores can be taken on the same images.
    """
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        yield [generator.integers(0, count, count) for count in counts]


def draw_images(images: Sequence[np.ndarray], replicates: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Yield the row numbers of resamples of each set as draw_resamples does, with all rows of an image that is drawn.

    images: of each set the numbers of its rows' images (n,), counted from 0.
    """
    rows_of = [_rows_of_images(each) for each in images]
    for drawn in draw_resamples([int(each.max()) + 1 for each in images], replicates, seed):
        yield [rows(own) for rows, own in zip(rows_of, drawn, strict=True)]


def _rows_of_images(images: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of the numbers of images that returns the numbers of their rows."""
    order, counts = np.argsort(images, kind="stable"), np.bincount(images)
    if (counts == 1).all():  # as fast as without images
        return lambda drawn: order[drawn]
    parts = np.split(order, np.cumsum(counts)[:-1])
    return lambda drawn: np.concatenate([parts[i] for i in drawn])


@dataclass(frozen=True)
class ClusterBootstrap:
    """Resamples of a set of which whole groups are drawn together; iterating yields the weights of its rows.

    The same seed gives the same draws, so that differences of scores are taken on the same images.
    """

    groups: np.ndarray  # (n,) names or numbers
    seed: int = 0
    replicates: int = CLUSTER_RESAMPLES

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield weights (n,): first 1 for every row; then, for two groups or more, how often each row was drawn."""
        yield np.ones(len(self.groups))
        names, numbers = np.unique(self.groups, return_inverse=True)
        generator = np.random.default_rng(self.seed)
        for _ in range(self.replicates if len(names) > 1 else 0):
            times = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
            yield times[numbers].astype(np.float64)


def percentile_value(values: np.ndarray) -> Value:
    """Return the first of (1 + R,) values with the percentiles of the rest, without those that are NaN or infinite.

    There is no interval where none of the rest is finite.
    """
    finite = values[1:][np.isfinite(values[1:])]
    bounds = np.percentile(finite, (2.5, 97.5)).tolist() if len(finite) else (None, None)
    return Value(float(values[0]), *bounds)


def correlation_value(
    first: np.ndarray, second: np.ndarray, seed: int = 0, groups: np.ndarray | None = None
) -> Value | None:
    """Return Pearson's correlation of pairs of values (n,), with percentiles over resamples of the pairs.

    groups: numbers (n,) of what is resampled as a whole, as in mean_value. None where all values of a side are equal, so that there
    is none.
    """
    values = np.stack([first, second])
    if (values.max(1) == values.min(1)).any():
        return None
    count = len(first)
    if groups is None:
        drawn = [np.arange(count), *(rows for (rows,) in draw_resamples([count], PAIR_RESAMPLES, seed))]
    else:
        resamples = ClusterBootstrap(groups, seed, PAIR_RESAMPLES)
        drawn = [np.repeat(np.arange(count), times.astype(np.int64)) for times in resamples]
    with np.errstate(invalid="ignore"):  # of a resample whose values are all one
        return percentile_value(np.array([np.corrcoef(values[:, rows])[0, 1] for rows in drawn]))
