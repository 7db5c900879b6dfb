"""Distances between two sets of features, in float64: FID, KID, and precision, recall, density, coverage (PRDC).

The names FID and KID stand for Frechet and kernel distance in features of any encoder; files and options call them fd and kid.
Letters: N real rows, M synthetic rows, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from diffusion.evaluation.metrics.moments import Gaussian, fit_gaussian
from diffusion.evaluation.metrics.quantities import PRDC_NEIGHBOURS
from diffusion.utils.errors import InputError

RANK_TOLERANCE = 1e-10  # relative to the largest eigenvalue: directions with less have only the spread of rounding
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # of Binkowski et al. 2018 and of torch-fidelity
SAMPLES_PER_FEATURE = 2  # samples / D from which on the bias of a distance falls with 1 / samples
FEW_ROWS = 2000  # up to as many rows are halved in several ways
COPY = 1e-10  # squared distance of two rows, relative to their mean square, up to which they are of one image
COMPARED = 50  # rows next to each other on a direction that are compared
BLOCK = 1024  # rows whose distances to all other rows are held at once


def compute_fid(real: torch.Tensor, synthetic: torch.Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to real (N, D) and synthetic (M, D) features.

    With Inception features it is the FID (Heusel et al. 2017), with unbiased covariances. It is biased upwards, the more
    the fewer samples: compare only distances of equally many samples.
    Raises InputError for fewer than two samples on a side, widths that differ, and values that are NaN or infinite.
    """
    _check_features(real, synthetic)
    if max(len(real), len(synthetic)) <= real.shape[1]:
        return _fid_of_few_samples(real.double(), synthetic.double())
    return fid_of_gaussians(fit_gaussian([real], real.device), fit_gaussian([synthetic], real.device))


def fid_of_gaussians(real: Gaussian, synthetic: Gaussian) -> float:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of the symmetric R' C2 R, where R R' = C1.
    """
    values, vectors = torch.linalg.eigh(real.covariance)
    root = vectors * values.clamp(min=0).sqrt()
    shared = torch.linalg.eigvalsh(root.T @ synthetic.covariance @ root).clamp(min=0).sqrt().sum()
    spreads = real.covariance.trace() + synthetic.covariance.trace()
    distance = (real.mean - synthetic.mean).square().sum() + spreads - 2 * shared
    return max(float(distance), 0.0)  # rounding must not make it negative


def fid_influence(own: Gaussian, other: Gaussian) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that maps rows (n, D) of one of two sets to their influence on the Frechet distance, (n,).

    The influence is to first order, and 0 in the mean. The derivative of the distance by the mean is 2 (m - m'), by the
    covariance 1 - T, where T is the linear map that carries one Gaussian to the other. The variance of the influence over
    the rows, divided by their number, is the limit of the bootstrap's for many samples (the infinitesimal jackknife,
    Efron 1982).
    """
    values, vectors = torch.linalg.eigh(own.covariance)
    kept = values > RANK_TOLERANCE * values.max()
    scale, directions = values[kept].sqrt(), vectors[:, kept]
    root, inverse = directions * scale, directions / scale
    shared, turned = torch.linalg.eigh(root.T @ other.covariance @ root)
    transport = inverse @ (turned * shared.clamp(min=0).sqrt()) @ turned.T @ inverse.T
    slope, shift = torch.eye(len(values), dtype=values.dtype, device=values.device) - transport, own.mean - other.mean
    expected = (slope * own.covariance).sum()

    def influence(rows: torch.Tensor) -> torch.Tensor:
        deviation = rows.to(own.mean) - own.mean
        return 2 * deviation @ shift + ((deviation @ slope) * deviation).sum(1) - expected

    return influence


def _fid_of_few_samples(real: torch.Tensor, synthetic: torch.Tensor) -> float:
    """Return the Frechet distance of no more rows than columns.

    With covariances A'A and B'B, the trace of the root is the sum of the singular values of AB', which is (N, M), and no
    root is taken of eigenvalues that are zero but for rounding.
    """
    a, b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (real, synthetic))
    shared = torch.linalg.svdvals(a @ b.T).sum()
    spreads = a.square().sum() + b.square().sum()
    distance = (real.mean(0) - synthetic.mean(0)).square().sum() + spreads - 2 * shared
    return max(float(distance), 0.0)


def _check_features(real: torch.Tensor, synthetic: torch.Tensor) -> None:
    for name, features in (("real", real), ("synthetic", synthetic)):
        if features.ndim != 2 or len(features) < 2:
            raise InputError(
                f"got {name} features {tuple(features.shape)}, expected at least 2 samples, (samples, width)"
            )
        if not torch.isfinite(features).all():
            raise InputError(f"{name} features hold values that are not finite")
    if real.shape[1] != synthetic.shape[1]:
        raise InputError(
            f"real features are {real.shape[1]} wide, synthetic ones {synthetic.shape[1]}; take both from one encoder"
        )


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


def compute_kid(
    real: torch.Tensor,
    synthetic: torch.Tensor,
    seed: int = 0,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
) -> Estimate:
    """Return the kernel distance of real (N, D) and synthetic (M, D) features: unbiased squared MMD, kernel (x'y / D + 1)^3.

    With Inception features it is the KID (Binkowski et al. 2018). All rows are taken when there are no more than
    `subset_size` on either side; else it is the mean over random subsets of that size.
    The standard error is that of the first term of Hoeffding's decomposition, for all N and M rows.
    Raises InputError as `compute_fid`.
    """
    _check_features(real, synthetic)
    generator = np.random.default_rng(seed)
    size = min(subset_size, len(real), len(synthetic))
    takes_all = max(len(real), len(synthetic)) <= subset_size
    found = []
    for _ in tqdm(range(1 if takes_all else subsets), desc="kernel distance", unit="subset", leave=False, delay=3):
        x, y = real, synthetic
        if not takes_all:
            draws = [torch.from_numpy(generator.choice(len(rows), size, replace=False)) for rows in (real, synthetic)]
            x, y = (rows[draw.to(rows.device)] for rows, draw in zip((real, synthetic), draws, strict=True))
        found.append(_squared_mmd(x.double(), y.double()))
    value, variance_real, variance_synthetic = (float(np.mean(column)) for column in zip(*found, strict=True))
    return Estimate(value, 2 * (variance_real / len(real) + variance_synthetic / len(synthetic)) ** 0.5)


def _squared_mmd(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
    """Return the unbiased squared MMD, and the variances over x and over y of a row's part in it."""
    within_x, within_y, between = (_without_diagonal(x), _without_diagonal(y), _kernel(x, y))
    rows_x = within_x.sum(1) / (len(x) - 1) - between.mean(1)
    rows_y = within_y.sum(1) / (len(y) - 1) - between.mean(0)
    return float(rows_x.mean() + rows_y.mean()), float(rows_x.var()), float(rows_y.var())


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _without_diagonal(x: torch.Tensor) -> torch.Tensor:
    return _kernel(x, x).fill_diagonal_(0)


class Prdc(NamedTuple):
    """Per row, what precision, density (means over synthetic rows), recall and coverage (means over real rows) are made of."""

    precision: torch.Tensor  # (M,) 1 where the row is within a real row's neighbourhood
    density: torch.Tensor  # (M,) the number of real neighbourhoods that it is in, divided by k
    recall: torch.Tensor  # (N,) 1 where the row is within a synthetic row's neighbourhood
    coverage: torch.Tensor  # (N,) 1 where a synthetic row is within the row's own neighbourhood


def compute_prdc(real: torch.Tensor, synthetic: torch.Tensor, k: int = PRDC_NEIGHBOURS) -> Prdc:
    """Return improved precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), per row.

    A row's neighbourhood reaches to its k-th nearest other row of its own set.
    Raises InputError as `compute_fid`, and for k rows or fewer on a side.
    """
    _check_features(real, synthetic)
    if min(len(real), len(synthetic)) <= k:
        raise InputError(
            f"got {len(real)} real and {len(synthetic)} synthetic samples; neighbourhoods of {k} need more than {k} of each"
        )
    centre = real.double().mean(0)  # changes no distance, but spares the differences of squares from cancelling
    real, synthetic = real.double() - centre, synthetic.double() - centre
    reach_real, reach_synthetic = _neighbourhood_radii(real, k), _neighbourhood_radii(synthetic, k)
    inside = torch.zeros(len(synthetic), dtype=torch.float64, device=real.device)
    recalled, covered = [], []
    for first in range(0, len(real), BLOCK):
        distance = _squared_distances(real[first : first + BLOCK], synthetic)  # (n, M)
        reach = reach_real[first : first + BLOCK, None]
        inside += (distance < reach).sum(0)
        recalled.append((distance < reach_synthetic).any(1))
        covered.append(distance.min(1).values < reach[:, 0])
    return Prdc((inside > 0).double(), inside / k, torch.cat(recalled).double(), torch.cat(covered).double())


def distinct_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows (n, D) of features (N, D) without copies of others, as of an image that is there twice, to rounding.

    Copies have nearly the same projection on any direction: each row is compared with those next to it on one.
    """
    centred = rows.double() - rows.double().mean(0)
    nearest = COPY * float(centred.square().sum(1).mean())
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place, order = (centred @ (direction / direction.norm()).to(centred.device)).sort(stable=True)
    kept = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for apart in range(1, min(COMPARED, len(rows) - 1) + 1):
        left = kept[order]  # copies of a copy are known already
        near = (place[apart:] - place[:-apart]).square() <= nearest
        first = torch.nonzero(near & left[apart:] & left[:-apart])[:, 0]
        one, other = order[first], order[first + apart]
        distance = (centred[one] - centred[other]).square().sum(1)
        kept[other[distance <= nearest]] = False
    return rows[kept]


def _neighbourhood_radii(rows: torch.Tensor, k: int) -> torch.Tensor:
    """Return the squared distance of each row (n, D) to its k-th nearest other row, (n,)."""
    reaches = []
    for first in range(0, len(rows), BLOCK):
        distance = _squared_distances(rows[first : first + BLOCK], rows)
        distance[torch.arange(len(distance)), torch.arange(first, first + len(distance))] = torch.inf
        reaches.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(reaches)


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return squares.clamp_(min=0)


class FidExtrapolation(NamedTuple):
    """The Frechet distance at infinitely many samples, and those at shares of the samples that it was extrapolated from."""

    value: float
    shares: list[float]
    distances: list[float]


def extrapolate_fid(real: torch.Tensor, synthetic: torch.Tensor, seed: int = 0, points: int = 8) -> FidExtrapolation:
    """Extrapolate the Frechet distance to infinitely many samples by a line over 1 / samples (Chong and Forsyth 2020).

    This takes away the bias of few samples. Random shares of both sets are used, down to a quarter or to
    SAMPLES_PER_FEATURE * D samples: with fewer the bias does not fall with 1 / samples.
    Raises InputError for less than twice as many samples.
    """
    fewest, width = min(len(real), len(synthetic)), real.shape[1]
    if fewest < 2 * SAMPLES_PER_FEATURE * width:
        raise InputError(
            f"got {fewest} samples, expected at least {2 * SAMPLES_PER_FEATURE * width} to extrapolate from"
        )
    shares = np.linspace(max(1 / 4, SAMPLES_PER_FEATURE * width / fewest), 1, points)
    generator = np.random.default_rng(seed)
    distances = []
    for share in tqdm(shares, desc="extrapolating", unit="distance", leave=False, delay=3):
        parts = [_random_rows(rows, round(share * len(rows)), generator) for rows in (real, synthetic)]
        distances.append(compute_fid(*parts))
    _, value = np.polyfit(1 / shares, distances, 1)
    return FidExtrapolation(float(value), shares.tolist(), distances)


def _random_rows(rows: torch.Tensor, count: int, generator: np.random.Generator) -> torch.Tensor:
    """Draw rows without replacement; all of them, in their order, when there are no more than `count`."""
    if count >= len(rows):
        return rows
    return rows[torch.from_numpy(generator.choice(len(rows), count, replace=False)).to(rows.device)]


def split_half_fid(real: torch.Tensor, seed: int = 0) -> float:
    """Return the Frechet distance between two random halves of one set (N, D), which is bias only, at half its size.

    For few rows it is the mean over several ways to halve them; for many, where all give about the same, of one.
    """
    generator, repeats = np.random.default_rng(seed), 5 if len(real) <= FEW_ROWS else 1
    half, found = len(real) // 2, []
    for _ in range(repeats):
        order = torch.from_numpy(generator.permutation(len(real))).to(real.device)
        found.append(compute_fid(real[order[:half]], real[order[half : 2 * half]]))
    return float(np.mean(found))
