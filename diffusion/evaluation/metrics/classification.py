"""Scores of classifiers: accuracy, balanced accuracy, macro F1 and AUROC, of a test set and of resamples of it.

Letters: M test rows, C classes, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        order = np.argsort(score, kind="stable")
        ties = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
        return cls(order, positive[order].astype(np.float64), ties)

    def area(self, weights: np.ndarray) -> float:
        """The share of pairs, one row of the class and one of another, that the score puts in order; a tie is half."""
        weights = weights[self.order]
        inside = np.add.reduceat(weights * self.positive, self.ties)
        outside = np.add.reduceat(weights * (1 - self.positive), self.ties)
        pairs = inside.sum() * outside.sum()
        return float(inside @ (outside.cumsum() - outside / 2) / pairs) if pairs else np.nan


def resampled_scores(shares: np.ndarray, labels: np.ndarray, resamples: ClusterBootstrap) -> dict[str, np.ndarray]:
    """Every metric of class shares (M, C) on each resample, (1 + R,): the first value is that of the set itself.

    A class that a resample lacks is left out of its means; with no pair to compare, the AUROC is not a number.
    """
    classes, told = shares.shape[1], shares.argmax(1)
    one_against_rest = range(classes) if classes > 2 else [1]
    rankings = [Ranking.from_scores(shares[:, i], labels == i) for i in one_against_rest]
    rows = []
    for weights in resamples:
        areas = [area for ranking in rankings if not np.isnan(area := ranking.area(weights))]
        confusion = confusion_matrix(labels, told, classes, weights)
        rows.append([*confusion_metrics(confusion), np.mean(areas) if areas else np.nan])
    return dict(zip(CLASSIFICATION_METRICS, np.array(rows).T, strict=True))


def confusion_matrix(
    labels: np.ndarray, told: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Rows, or their weights, summed (C, C): true classes down, told ones across."""
    return np.bincount(labels * classes + told, weights, classes**2).reshape(classes, classes)


def confusion_metrics(confusion: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, balanced accuracy and macro F1 of counts (C, C): true classes down, told ones across."""
    hits, true, told = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall = hits[true > 0] / true[true > 0]
    either = true + told > 0
    f1 = 2 * hits[either] / (true + told)[either]
    return float(hits.sum() / confusion.sum()), float(recall.mean()), float(f1.mean())


def chance_level(confusion: np.ndarray) -> dict[str, float]:
    """What guessing scores on the test set of a confusion (C, C): always the largest class, or any at random."""
    true = confusion.sum(1)
    return {"accuracy": float(true.max() / true.sum()), "balanced_accuracy": 1 / len(true), "auroc": 0.5}
