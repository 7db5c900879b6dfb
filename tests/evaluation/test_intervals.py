"""Confidence intervals against closed forms and simulation, and resamples of whole groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scoring_data import seeded

from diffusion.evaluation.metrics import intervals
from diffusion.evaluation.metrics.classification import resampled_scores
from diffusion.evaluation.metrics.distances import (
    compute_fid,
    compute_kid,
)
from diffusion.evaluation.metrics.intervals import ClusterBootstrap, percentile_value
from diffusion.evaluation.metrics.scores import estimate_fid
from diffusion.evaluation.sets.features import Features


def test_intervals_cover_the_true_value():
    """Of 60 draws from known distributions, about 95 % of the intervals hold the true value."""
    held_mean = held_kernel = held_frechet = 0
    generator = np.random.default_rng(0)

    def draw(i):
        return torch.randn(100, 5, generator=seeded(1000 + i)), torch.randn(
            100, 5, generator=seeded(2000 + i)
        ) * 1.3 + 0.3

    many = [compute_fid(*draw(100 + i)) for i in range(200)]
    kernel = np.mean([compute_kid(*draw(100 + i)).value for i in range(200)])
    for i in range(60):
        low, high = intervals.mean_ci(generator.exponential(size=80), seed=i, replicates=400)
        held_mean += low <= 1 <= high
        low, high = intervals.normal_ci(*compute_kid(*draw(i)))
        held_kernel += low <= kernel <= high
        found = estimate_fid(*(Features.from_tensor(rows) for rows in draw(i)), replicates=20, seed=i)
        low, high = intervals.normal_ci(found.value, found.error)
        held_frechet += low <= np.mean(many) <= high
        assert found.error < 1.6 * np.std(many)  # and is little wider than it must be
    assert 50 <= held_mean <= 60 and 52 <= held_kernel <= 60 and 54 <= held_frechet <= 60


def test_wilson_interval_solves_its_equation():
    low, high = intervals.wilson_ci(3, 10)
    z, n, p = 1.959963984540054, 10, 0.3
    for bound in (low, high):  # both solve (p - x)^2 = z^2 x (1 - x) / n
        assert (p - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n, rel=1e-9)
    assert intervals.wilson_ci(0, 96) == (0.0, pytest.approx(z**2 / (96 + z**2), rel=1e-9))
    assert math.isclose(intervals.wilson_ci(50, 50).high, 1.0)


def test_cluster_bootstrap_draws_whole_groups():
    groups = np.array(["x", "y", "x", "z", "y"])
    draws = list(ClusterBootstrap(groups, seed=0, replicates=20))
    assert draws[0].tolist() == [1] * 5
    for weights in draws[1:]:
        assert weights[0] == weights[2] and weights[1] == weights[4]
        assert weights[0] + weights[1] + weights[3] == 3  # as many groups as there are
    assert len(list(ClusterBootstrap(np.array(["x", "x"])))) == 1 and percentile_value(np.array([0.5])) == (
        0.5,
        None,
        None,
    )


def test_clusters_widen_intervals():
    """Of 20 slides each is classified all right or all wrong: the spread is that of 20 images, not of 400."""
    labels = np.tile([0, 1], 200)
    right = np.repeat(np.arange(20) % 4 > 0, 20)
    shares = np.eye(2)[np.where(right, labels, 1 - labels)]
    slides = np.repeat(np.arange(20), 20).astype(str)
    images, whole = (
        percentile_value(resampled_scores(shares, labels, ClusterBootstrap(groups))["accuracy"])
        for groups in (np.arange(400).astype(str), slides)
    )
    assert images.value == whole.value == 0.75
    ratio = (whole.high - whole.low) / (images.high - images.low)
    assert 3.5 < ratio < 5.5  # the root of 20
