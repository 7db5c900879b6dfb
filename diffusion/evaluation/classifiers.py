"""The classifiers of probes: logistic regression, its penalty chosen by cross-validation, and nearest neighbours.

Letters: N training rows, M test rows, D width of the embedding, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffusion.evaluation.sets.labelled import LabelledEmbeddings

C_VALUES = tuple(10.0**power for power in range(-5, 2))  # 1 / strength of the L2 penalty, the strongest penalty first
DEFAULT_C = 1e-2  # where there are too few images for cross-validation
MAX_FOLDS = 5
MAX_ITERATIONS = 1000  # of L-BFGS


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier: `predict` maps embeddings (M, D) to class probabilities (M, C)."""

    predict: Callable[[np.ndarray], np.ndarray]
    setting: dict[str, float]
    notes: list[str] = field(default_factory=list)


def fit_linear(training: LabelledEmbeddings, seed: int = 0) -> Classifier:
    """Fit a logistic regression to standardized features; its L2 penalty is chosen by cross-validation on the training set."""
    from sklearn.preprocessing import StandardScaler

    notes = []
    folds = make_folds(training, seed)
    c = choose_c(training, folds) if folds else DEFAULT_C
    if not folds:
        notes.append(f"too few images of a class to choose C by; it is {DEFAULT_C:g}.")
    scaler: Any = StandardScaler().fit(training.features)
    model = logistic_regression(c)
    fit_without_warnings(model, scaler.transform(training.features), training.labels)
    if model.n_iter_.max() >= MAX_ITERATIONS:
        notes.append(f"not converged after {MAX_ITERATIONS} steps.")
    return Classifier(lambda features: model.predict_proba(scaler.transform(features)), {"C": c}, notes)


def logistic_regression(c: float) -> Any:
    """Return an unfitted logistic regression, which starts each fit from the one before."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=c, max_iter=MAX_ITERATIONS, warm_start=True)


def fit_without_warnings(model: Any, features: np.ndarray, labels: np.ndarray) -> None:
    """Fit a model; whether the final fit has converged is noted by `fit_linear`."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)


def choose_c(training: LabelledEmbeddings, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the value of C_VALUES with the least log loss on held-out rows; of equal ones that of the strongest penalty."""
    from sklearn.preprocessing import StandardScaler

    losses = np.zeros(len(C_VALUES))
    for fit_rows, held_out in folds:
        scaler: Any = StandardScaler().fit(training.features[fit_rows])
        inside, outside = (scaler.transform(training.features[rows]) for rows in (fit_rows, held_out))
        model = logistic_regression(C_VALUES[0])
        for i, c in enumerate(C_VALUES):
            fit_without_warnings(model.set_params(C=c), inside, training.labels[fit_rows])
            likelihood = model.predict_proba(outside)[np.arange(len(held_out)), training.labels[held_out]]
            losses[i] -= np.log(likelihood.clip(min=np.finfo(likelihood.dtype).tiny)).sum()
    return C_VALUES[int(losses.argmin())]


def make_folds(training: LabelledEmbeddings, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of rows to fit and rows to hold out, both with all classes; no pair when a class has a single row.

    No group is on both sides, where each class has enough groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels, groups = training.labels, training.groups
    _, counts = np.unique(labels, return_counts=True)
    number = min(MAX_FOLDS, int(counts.min()))
    if number < 2:
        return []
    if number <= len(set(groups)) < len(groups):
        folds = StratifiedGroupKFold(number, shuffle=True, random_state=seed).split(labels, labels, groups)
        complete = [fold for fold in folds if all(len(np.unique(labels[rows])) == len(counts) for rows in fold)]
        if len(complete) > 1:
            return complete
    return list(StratifiedKFold(number, shuffle=True, random_state=seed).split(labels, labels))


def fit_knn(training: LabelledEmbeddings, k: int = 20) -> Classifier:
    """Return a classifier by the k nearest rows in cosine distance, each with one vote."""
    from sklearn.neighbors import KNeighborsClassifier

    model: Any = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(training.features, training.labels)
    return Classifier(model.predict_proba, {"k": k})


def limit_k(k: int, sets: Iterable[LabelledEmbeddings], classes: Sequence[str]) -> int:
    """Return k, or the rows that the smallest set has of a class on average: beyond, other classes must come in.

    It is one for all sets, so that their scores differ by what was trained on alone.
    """
    return min(k, max(1, min(map(len, sets)) // len(classes)))
