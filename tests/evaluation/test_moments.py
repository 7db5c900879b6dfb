"""Means and covariances accumulated over batches."""

from __future__ import annotations

import torch
from scoring_data import (
    correlated,
)

from diffusion.evaluation.metrics.moments import fit_gaussian


def test_moments_of_batches_equal_those_of_all_rows():
    rows = correlated(
        1000, 12, seed=11, offset=1e4
    )  # far from zero: squares of it would lose the covariance in float32
    found = fit_gaussian(rows.split([1, 499, 37, 463]))
    assert found.count == 1000
    torch.testing.assert_close(found.mean, rows.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.covariance, torch.cov(rows.double().T), rtol=1e-8, atol=1e-10)
