"""Classification scores against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from diffusion.evaluation.metrics.classification import resampled_scores
from diffusion.evaluation.metrics.intervals import ClusterBootstrap


@pytest.mark.parametrize("classes", (2, 3))
def test_weighted_metrics_equal_scikit_learn(classes):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 50)
    shares = random.multinomial(4, np.full(classes, 1 / classes), 50) / 4  # with ties, as votes have them
    resamples = ClusterBootstrap(np.arange(50).astype(str), seed=1, replicates=3)
    found, predicted = resampled_scores(shares, labels, resamples), shares.argmax(1)
    for i, weights in enumerate(resamples):
        rest = dict(sample_weight=weights)
        areas = [reference.roc_auc_score(labels == c, shares[:, c], **rest) for c in range(classes)]
        expected = {
            "accuracy": reference.accuracy_score(labels, predicted, **rest),
            "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted, **rest),
            "macro_f1": reference.f1_score(labels, predicted, average="macro", **rest),
            "auroc": np.mean(areas) if classes > 2 else areas[1],
        }
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected)
    assert len(found["auroc"]) == 4
