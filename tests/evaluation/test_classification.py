"""Classification scores and agreement of calls against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from diffusion.evaluation.metrics.classification import (
    CallAgreement,
    agreement_of_calls,
    confusion_matrix,
    resampled_scores,
)
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


@pytest.mark.parametrize(("true_classes", "called_classes"), [((0, 1, 2), (0, 1, 2)), ((0, 2), (0, 2)), ((0, 1), (1,))])
def test_agreement_of_calls_equals_scikit_learn(true_classes, called_classes):
    """Also without the middle class, which keeps the ends two classes apart, and where all calls are one."""
    random = np.random.default_rng(0)
    true, called = random.choice(true_classes, 60), random.choice(called_classes, 60)
    if len(called_classes) > 1:
        called = np.where(random.random(60) < 0.5, true, called)
    known = {"labels": range(3), "zero_division": 0.0}
    expected = CallAgreement(
        reference.accuracy_score(true, called),
        reference.cohen_kappa_score(true, called, labels=range(3)),
        reference.cohen_kappa_score(true, called, labels=range(3), weights="linear"),
        reference.f1_score(true, called, average="macro"),
        reference.f1_score(true, called, average="weighted", **known),
        reference.matthews_corrcoef(true, called),
    )
    assert agreement_of_calls(confusion_matrix(true, called, 3)) == pytest.approx(expected, abs=1e-12)


def test_agreement_with_one_class_is_not_defined():
    found = agreement_of_calls(np.array([[0, 0, 0], [1, 3, 0], [0, 0, 0]]))
    assert (found.accuracy, found.weighted_f1) == pytest.approx((0.75, 6 / 7)) and found.macro_f1 == pytest.approx(
        3 / 7
    )
    assert np.isnan([found.kappa, found.weighted_kappa, found.mcc]).all()
