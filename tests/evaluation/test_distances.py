"""FID, KID and PRDC against closed forms, plain loops, scipy, torchmetrics and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from scoring_data import (
    correlated,
    gaussian_with,
    seeded,
)

from diffusion.evaluation.metrics.distances import (
    compute_fid,
    compute_kid,
    compute_prdc,
    distinct_rows,
    extrapolate_fid,
    fid_influence,
    fid_of_gaussians,
    split_half_fid,
)
from diffusion.evaluation.metrics.moments import Gaussian, fit_gaussian
from diffusion.utils.errors import InputError


def test_fid_of_diagonal_gaussians_is_the_closed_form():
    sigma_a, sigma_b = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 2.0, 1.5, 0.1]).double()
    mean_a, mean_b = torch.tensor([0.0, 1.0, 100.0, -5.0]).double(), torch.tensor([3.0, 1.0, 96.0, -5.0]).double()
    real = gaussian_with(mean_a, torch.diag(sigma_a**2), 50, seed=1)
    synthetic = gaussian_with(mean_b, torch.diag(sigma_b**2), 70, seed=2)
    expected = float((mean_a - mean_b).square().sum() + (sigma_a - sigma_b).square().sum())
    assert compute_fid(real, synthetic) == pytest.approx(expected, rel=1e-9)


def test_fid_agrees_with_scipy():
    real, synthetic = correlated(200, 24, seed=3, offset=7), correlated(150, 24, seed=4, offset=6.5)
    a, b = real.double().numpy(), synthetic.double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)
    assert compute_fid(real, synthetic) == pytest.approx(expected, rel=1e-9)


def test_fid_agrees_with_torch_fidelity_and_torchmetrics():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, synthetic = correlated(400, 64, seed=5, offset=2), correlated(300, 64, seed=6, offset=2.2)
    ours = compute_fid(real, synthetic)
    # torch-fidelity takes the covariances of numpy, unbiased as ours
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(real.double()), fid_features_to_statistics(synthetic.double()), verbose=False
    )
    assert ours == pytest.approx(next(iter(theirs.values())), rel=1e-6)

    class PassThrough(torch.nn.Module):
        num_features = 64

        def forward(self, features):
            return features

    metric = FrechetInceptionDistance(feature=PassThrough()).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(synthetic.double(), real=False)
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)


def test_fid_of_equal_sets_is_zero_and_fid_is_symmetric():
    few = torch.randn(20, 64, generator=seeded(4)) * 3 + 50  # fewer samples than features: singular covariances
    other = torch.randn(20, 64, generator=seeded(5)) + 50
    scale = float(torch.cov(few.T).trace())
    assert compute_fid(few, few) < 1e-9 * scale
    assert compute_fid(few, other) > 0.1 * scale
    assert compute_fid(few, other) == pytest.approx(compute_fid(other, few), rel=1e-9)
    many = correlated(300, 16, seed=6)
    assert compute_fid(many, many) < 1e-9 * float(torch.cov(many.T).trace())


def test_fid_by_singular_values_equals_fid_by_covariances():
    """The way for no more samples than features, and the way through covariances, on sets that both can take."""
    real, synthetic = correlated(60, 64, seed=7), correlated(50, 64, seed=8, offset=0.1)
    through_covariances = fid_of_gaussians(fit_gaussian([real]), fit_gaussian([synthetic]))
    assert compute_fid(real, synthetic) == pytest.approx(through_covariances, rel=1e-6)


def test_constant_features_do_not_change_fid():
    """Numbers that are constant, as of a unit that never fires, make covariances singular."""
    real, synthetic = correlated(300, 10, seed=9), correlated(300, 10, seed=10, offset=0.2)
    padded = [torch.cat([rows, torch.full((300, 5), 3.0)], 1) for rows in (real, synthetic)]
    assert compute_fid(*padded) == pytest.approx(compute_fid(real, synthetic), rel=1e-6)


def test_invalid_features_are_refused():
    good = torch.randn(5, 3)
    for measure in (compute_fid, compute_kid, compute_prdc):
        for real, synthetic, message in (
            (good[:1], good, r"real features \(1, 3\), expected at least 2"),
            (good, good[:1], "synthetic features"),
            (good, torch.randn(5, 4), "3 wide, synthetic ones 4"),
            (good, good.where(good > 0, torch.nan), "not finite"),
            (good.flatten(), good, "expected at least 2"),
        ):
            with pytest.raises(InputError, match=message):
                measure(real, synthetic)
    with pytest.raises(InputError, match="neighbourhoods of 5 need more than 5 of each"):
        compute_prdc(good, torch.randn(9, 3))
    with pytest.raises(InputError, match="not finite"):
        fit_gaussian([good.where(good > 0, torch.nan)])


def test_kid_is_the_plain_sum():
    real, synthetic = correlated(13, 6, seed=20).double(), correlated(9, 6, seed=21, offset=0.3).double()

    def kernel(x, y):
        return float((x @ y / 6 + 1) ** 3)

    within_real = np.mean([kernel(x, y) for i, x in enumerate(real) for j, y in enumerate(real) if i != j])
    within_synthetic = np.mean(
        [kernel(x, y) for i, x in enumerate(synthetic) for j, y in enumerate(synthetic) if i != j]
    )
    between = np.mean([kernel(x, y) for x in real for y in synthetic])
    assert compute_kid(real, synthetic).value == pytest.approx(within_real + within_synthetic - 2 * between, rel=1e-12)


def test_kid_agrees_with_torch_fidelity():
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, synthetic = correlated(500, 32, seed=22), correlated(500, 32, seed=23, offset=0.3)
    theirs = kid_features_to_metric(
        real.double(), synthetic.double(), kid_subsets=1, kid_subset_size=500, verbose=False
    )
    assert compute_kid(real, synthetic).value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    # over subsets the draws differ, and the mean is within its error
    ours = compute_kid(real, synthetic, subset_size=200)
    assert abs(ours.value - compute_kid(real, synthetic).value) < 2 * ours.error


def test_kid_of_gaussians_is_the_closed_form():
    """One number a feature: E (xy + 1)^3 = E x^3 E y^3 + 3 E x^2 E y^2 + 3 E x E y + 1."""

    def moments(mean, sigma):
        return mean, mean**2 + sigma**2, mean**3 + 3 * mean * sigma**2

    def expected_kernel(a, b):
        return a[2] * b[2] + 3 * a[1] * b[1] + 3 * a[0] * b[0] + 1

    a, b = moments(0.5, 1.0), moments(0.8, 1.2)
    expected = expected_kernel(a, a) + expected_kernel(b, b) - 2 * expected_kernel(a, b)
    real = torch.randn(4000, 1, generator=seeded(24)) + 0.5
    synthetic = torch.randn(4000, 1, generator=seeded(25)) * 1.2 + 0.8
    found = compute_kid(real, synthetic, subset_size=4000)
    assert abs(found.value - expected) < 2.5 * found.error < 0.5 * expected


def test_prdc_is_the_plain_loops():
    real, synthetic = correlated(40, 5, seed=30).double(), correlated(30, 5, seed=31, offset=0.4).double()
    k = 3

    def reach(rows, i):
        return sorted(float((rows[i] - rows[j]).norm()) for j in range(len(rows)) if j != i)[k - 1]

    def within(centre, radius, rows):
        return [float((centre - row).norm()) < radius for row in rows]

    of_real = np.array([within(row, reach(real, i), synthetic) for i, row in enumerate(real)])
    of_synthetic = np.array([within(row, reach(synthetic, i), real) for i, row in enumerate(synthetic)])
    found = compute_prdc(real, synthetic, k)
    assert found.precision.mean() == pytest.approx(of_real.any(0).mean())
    assert found.density.mean() == pytest.approx(of_real.sum() / k / len(synthetic))
    assert found.recall.mean() == pytest.approx(of_synthetic.any(0).mean())
    assert found.coverage.mean() == pytest.approx(of_real.any(1).mean())
    assert 0 < found.precision.mean() < 1 and 0 < found.recall.mean() < 1


def test_copies_are_found_among_many_rows_to_rounding():
    rows = torch.randn(5000, 64, generator=seeded(8))
    rounded = rows * (1 + 1e-6 * torch.randn(rows.shape, generator=seeded(9)))
    found = distinct_rows(torch.cat([rows, rounded]))
    assert len(found) == 5000 and len(torch.unique((found * 100).round(), dim=0)) == 5000
    assert torch.equal(distinct_rows(rows), rows) and len(distinct_rows(rows[:1].expand(9, -1))) == 1


def test_prdc_of_more_rows_than_a_block(monkeypatch):
    from diffusion.evaluation.metrics import distances

    real, synthetic = correlated(90, 4, seed=32), correlated(70, 4, seed=33)
    whole = compute_prdc(real, synthetic)
    monkeypatch.setattr(distances, "BLOCK", 32)
    for one, other in zip(whole, compute_prdc(real, synthetic), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert compute_prdc(real, real).coverage.min() == 1 and compute_prdc(real, real + 100).precision.max() == 0


def test_extrapolated_fid_is_unbiased():
    width, count, shift = 20, 600, 0.3
    expected = width * shift**2
    plain, extrapolated = [], []
    for seed in range(6):
        real = torch.randn(count, width, generator=seeded(200 + seed))
        synthetic = torch.randn(count, width, generator=seeded(300 + seed)) + shift
        plain.append(compute_fid(real, synthetic))
        extrapolated.append(extrapolate_fid(real, synthetic, seed).value)
    assert np.mean(plain) > 1.15 * expected
    with pytest.raises(InputError, match="got 70 samples, expected at least 80 to extrapolate from"):
        extrapolate_fid(real[:70], synthetic)
    assert np.mean(extrapolated) == pytest.approx(expected, rel=0.07)


def test_split_half_fid_is_the_bias_at_half_the_rows():
    rows = torch.randn(400, 10, generator=seeded(40))
    apart = []
    for i in range(20):
        both = (torch.randn(200, 10, generator=seeded(seed + i)) for seed in (500, 600))
        apart.append(compute_fid(*both))
    assert split_half_fid(rows) == pytest.approx(np.mean(apart), rel=0.25)


def test_influence_is_the_derivative_of_fid():
    """What a row moves the distance by: the first difference when one row is counted a little more."""
    real, synthetic = correlated(80, 6, seed=50).double(), correlated(70, 6, seed=51, offset=0.5).double()
    own, other = fit_gaussian([real]), fit_gaussian([synthetic])
    moves = fid_influence(own, other)(real)
    assert abs(float(moves.mean())) < 0.03 * float(moves.std())
    step = 1e-4
    for i in (0, 11, 42):
        away = real[i] - own.mean
        mean = own.mean + step * away
        covariance = own.covariance + step * (torch.outer(away, away) - own.covariance)
        moved = fid_of_gaussians(Gaussian(80, mean, covariance), other) - fid_of_gaussians(own, other)
        assert float(moves[i]) == pytest.approx(moved / step, rel=1e-2, abs=1e-3)
