"""Scores of classifiers: accuracy, balanced accuracy, macro F1 and AUROC, of a test set and of resamples of it; agreement of calls.

Written out, since scikit-learn takes 85 times as long for the weights of 1000 resamples.
Letters: M test rows, C classes, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from diffusion.evaluation.metrics.intervals import ClusterBootstrap

CLASSIFICATION_METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
}


@dataclass(frozen=True)
class Ranking:
    """Test rows in the order of a score, for the area under the ROC curve of any weights."""

    order: np.ndarray  # (M,)
    positive: np.ndarray  # (M,) in that order: 1 where the row is of the class
    ties: np.ndarray  # first places of equal scores

    @classmethod
    def from_scores(cls, score: np.ndarray, positive: np.ndarray) -> Ranking:
        """Sort rows by their score (M,); positive: whether each is of the class (M,)."""
        order = np.argsort(score, kind="stable")
        ties = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
        return cls(order, positive[order].astype(np.float64), ties)

    def auroc(self, weights: np.ndarray) -> float:
        """Return the share of pairs, of a row of the class and another row, that the score orders correctly; a tie is half.

        weights: of the rows (M,). NaN where there is no such pair.
        """
        weights = weights[self.order]
        positives = np.add.reduceat(weights * self.positive, self.ties)
        negatives = np.add.reduceat(weights * (1 - self.positive), self.ties)
        pairs = positives.sum() * negatives.sum()
        return float(positives @ (negatives.cumsum() - negatives / 2) / pairs) if pairs else np.nan


def resampled_scores(
    probabilities: np.ndarray, labels: np.ndarray, resamples: ClusterBootstrap
) -> dict[str, np.ndarray]:
    """Return every metric of class probabilities (M, C) on each resample, (1 + R,): the set itself comes first.

    A class that a resample lacks is left out of its means; the AUROC is NaN where there is no pair to compare.
    """
    classes, predicted = probabilities.shape[1], probabilities.argmax(1)
    one_against_rest = range(classes) if classes > 2 else [1]
    rankings = [Ranking.from_scores(probabilities[:, i], labels == i) for i in one_against_rest]
    rows = []
    for weights in resamples:
        areas = [area for ranking in rankings if not np.isnan(area := ranking.auroc(weights))]
        confusion = confusion_matrix(labels, predicted, classes, weights)
        rows.append([*confusion_metrics(confusion), np.mean(areas) if areas else np.nan])
    return dict(zip(CLASSIFICATION_METRICS, np.array(rows).T, strict=True))


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the number of rows, or the sum of their weights, (C, C): true classes down, predicted ones across."""
    return np.bincount(labels * classes + predicted, weights, classes**2).reshape(classes, classes)


def confusion_metrics(confusion: np.ndarray) -> tuple[float, float, float]:
    """Return accuracy, balanced accuracy and macro F1 of a confusion matrix (C, C)."""
    hits, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall = hits[true > 0] / true[true > 0]
    either = true + predicted > 0
    f1 = 2 * hits[either] / (true + predicted)[either]
    return float(hits.sum() / confusion.sum()), float(recall.mean()), float(f1.mean())


def chance_level(confusion: np.ndarray) -> dict[str, float]:
    """Return what guessing scores on the test set of a confusion matrix: always the largest class, or any at random."""
    true = confusion.sum(1)
    return {"accuracy": float(true.max() / true.sum()), "balanced_accuracy": 1 / len(true), "auroc": 0.5}


class CallAgreement(NamedTuple):
    """How the calls of two raters, of the same images, agree.

    kappa: Cohen's (1960); weighted_kappa: with linear weights (Cohen 1968), by which calls two classes apart count twice as
    wrong as neighbours; macro_f1, weighted_f1: mean over classes, all alike or by their number of true calls; mcc: Matthews'
    correlation of several classes (Gorodkin 2004).
    """

    accuracy: float
    kappa: float
    weighted_kappa: float
    macro_f1: float
    weighted_f1: float
    mcc: float


def agreement_of_calls(confusion: np.ndarray) -> CallAgreement:
    """Compute the agreement of calls in ordered classes from their confusion matrix (C, C), true calls down.

    A class that neither uses is left out of the macro F1, and moves nothing else. Both kappas and the correlation are NaN where
    the true calls have fewer than two classes, and 0 where only the others have one.
    """
    count, true, predicted = confusion.sum(), confusion.sum(1), confusion.sum(0)
    accuracy, _, macro_f1 = confusion_metrics(confusion)
    hits = confusion.diagonal()
    f1 = np.divide(2 * hits, true + predicted, out=np.zeros(len(hits)), where=true + predicted > 0)
    weighted_f1 = float(f1 @ true / count)
    if (true > 0).sum() < 2:
        return CallAgreement(accuracy, np.nan, np.nan, macro_f1, weighted_f1, np.nan)
    by_chance = np.outer(true, predicted) / count
    distance = np.abs(np.subtract.outer(np.arange(len(true)), np.arange(len(true))))
    kappas = [1 - (weights * confusion).sum() / (weights * by_chance).sum() for weights in (distance > 0, distance)]
    spread = np.sqrt((count**2 - predicted @ predicted) * (count**2 - true @ true))
    mcc = float((hits.sum() * count - true @ predicted) / spread) if spread else 0.0
    return CallAgreement(accuracy, float(kappas[0]), float(kappas[1]), macro_f1, weighted_f1, mcc)
