"""All scores of two sets, the error of FID, and which metrics are taken."""

from __future__ import annotations

import json

import pytest
import torch
from scoring_data import correlated, seeded

from diffusion.evaluation.metrics.quantities import QUANTITIES
from diffusion.evaluation.metrics.scores import estimate_fid, score
from diffusion.evaluation.sets.features import Features
from diffusion.formats import ALL_METRICS, MEASURED_METRICS, METRICS
from diffusion.utils.errors import InputError


def test_fid_error_of_few_samples_is_that_of_the_bootstrap():
    real, synthetic = (
        Features.from_tensor(correlated(30, 64, seed=52)),
        Features.from_tensor(correlated(30, 64, seed=53)),
    )
    found = estimate_fid(real, synthetic, replicates=40)
    assert found.error == pytest.approx(found.deviations.std(ddof=1)) and abs(found.deviations.mean()) < 1e-9
    assert estimate_fid(real, synthetic, replicates=0).deviations.size == 0


def test_fid_deviations_of_the_same_draws_cancel():
    """Two distances to one set, of synthetic sets that are nearly the same, differ by far less than either errs."""
    real, synthetic = torch.randn(200, 8, generator=seeded(60)), torch.randn(200, 8, generator=seeded(61)) + 0.5
    near = synthetic + 0.01 * torch.randn(200, 8, generator=seeded(62))
    one, other = (
        estimate_fid(Features.from_tensor(real), Features.from_tensor(rows), replicates=50)
        for rows in (synthetic, near)
    )
    assert (one.deviations - other.deviations).std() < 0.1 * one.error


def test_scores_of_a_set_against_itself_are_optimal():
    rows = Features.from_tensor(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), "some")
    values = score(rows, rows, training=rows, replicates=5).values
    assert values["fd"].value < 1e-9 and values["fd_infinity"].value < 0.05
    assert values["kid"].value < 0  # unbiased of two sets; here each row meets itself in the other
    for name in ("precision", "recall", "coverage", "similarity", "nearest_training", "nearest_training_of_real"):
        assert values[name].value == pytest.approx(1, abs=1e-6)
    assert values["feature_distance"].value == 0 and values["above_random"].value > 0.99
    assert set(values) == {name for name, each in QUANTITIES.items() if each.metric not in MEASURED_METRICS}


def test_each_metric_computes_the_scores_that_the_table_says():
    rows = Features.from_tensor(torch.randn(40, 8, generator=seeded(63)))
    assert score(rows, rows, MEASURED_METRICS).values == {}, "which are measured in images, not in features"
    for metric in (metric for metric in METRICS if metric not in MEASURED_METRICS):
        wanted = {name for name, quantity in QUANTITIES.items() if quantity.metric == metric}
        assert wanted and set(score(rows, rows, [metric], training=rows, replicates=0).values) == wanted
    assert {quantity.metric for quantity in QUANTITIES.values()} == set(ALL_METRICS)


def test_a_real_image_that_is_there_twice_counts_once():
    """More samples than windows of tissue condition on each window several times, and its picture is there as often."""
    real, synthetic = correlated(60, 12, seed=3), correlated(120, 12, seed=4, offset=0.3)
    noise = 1e-7 * torch.randn(60, 12, generator=seeded(0))  # of another batch's rounding
    once, twice = (
        score(Features.from_tensor(rows), Features.from_tensor(synthetic), ("kid", "prdc"))
        for rows in (real, torch.cat([real, real + noise]))
    )
    assert {name: value.value for name, value in twice.values.items()} == pytest.approx(
        {name: value.value for name, value in once.values.items()}, rel=1e-5
    )
    assert sum("taken of the 60 real images that differ" in note for note in twice.notes) == 1
    assert not any("differ" in note for note in once.notes)


def test_only_requested_metrics_are_computed():
    rows = Features.from_tensor(torch.randn(30, 8))
    assert list(score(rows, rows, ["kid"]).values) == ["kid"]
    with pytest.raises(InputError, match="metric fid is none of fd, "):
        score(rows, rows, ["fid"])
    with pytest.raises(InputError, match="8 wide, synthetic ones 9"):
        score(rows, Features.from_tensor(torch.randn(30, 9)))


def test_real_images_that_are_all_alike_give_no_distance_of_pairs():
    """Whose unit is the distance of two of them; every value is a number that JSON has."""
    real, synthetic = torch.ones(4, 3), torch.eye(4, 3) + 1
    scores = score(Features.from_tensor(real), Features.from_tensor(synthetic), ["similarity"])
    assert "feature_distance" not in scores.values and any("All real images are alike" in note for note in scores.notes)
    json.dumps(scores.to_dict(), allow_nan=False)
    assert "deviations" not in repr(scores) and len(repr(scores)) < 2000
