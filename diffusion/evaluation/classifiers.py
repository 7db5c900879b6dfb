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

C_VALUES = tuple(10.0**power for power in range(-5, 2))  # C: 1 / strength of the L2 penalty, the strongest first
DEFAULT_C = 1e-2  # where there are too few images to choose by
MAX_FOLDS = 5
MAX_ITERATIONS = 1000  # of L-BFGS


@dataclass(frozen=True)
class Classifier:
    """A classifier: `shares` maps embeddings (M, D) to what each class has of 1, (M, C)."""

    shares: Callable[[np.ndarray], np.ndarray]
    setting: dict[str, float]
    notes: list[str] = field(default_factory=list)


def fit_linear(training: LabelledEmbeddings, seed: int = 0) -> Classifier:
    """Logistic regression on standardized features, its L2 penalty chosen by cross-validation on the training set."""
    from sklearn.preprocessing import StandardScaler

    notes = []
    parts = make_folds(training, seed)
    strength = choose_c(training, parts) if parts else DEFAULT_C
    if not parts:
        notes.append(f"too few images of a class to choose C by; it is {DEFAULT_C:g}.")
    scaler = StandardScaler().fit(training.features)
    model = logistic_regression(strength)
    fit_without_warnings(model, scaler.transform(training.features), training.labels)
    if model.n_iter_.max() >= MAX_ITERATIONS:
        notes.append(f"not converged after {MAX_ITERATIONS} steps.")
    return Classifier(lambda features: model.predict_proba(scaler.transform(features)), {"C": strength}, notes)


def logistic_regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, warm_start=True)


def fit_without_warnings(model: Any, features: np.ndarray, labels: np.ndarray) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in one line, where it is the final fit
        model.fit(features, labels)


def choose_c(training: LabelledEmbeddings, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The C of STRENGTHS with the least log loss on rows that were held out; of equals the strongest penalty."""
    from sklearn.preprocessing import StandardScaler

    losses = np.zeros(len(C_VALUES))
    for fitted, held_out in parts:
        scaler = StandardScaler().fit(training.features[fitted])
        inside, outside = (scaler.transform(training.features[rows]) for rows in (fitted, held_out))
        model = logistic_regression(C_VALUES[0])
        for i, strength in enumerate(C_VALUES):  # each fit starts from the one before
            fit_without_warnings(model.set_params(C=strength), inside, training.labels[fitted])
            own = model.predict_proba(outside)[np.arange(len(held_out)), training.labels[held_out]]
            losses[i] -= np.log(own.clip(min=np.finfo(own.dtype).tiny)).sum()
    return C_VALUES[int(losses.argmin())]


def make_folds(training: LabelledEmbeddings, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit and rows to hold out, each time with all classes; none when a class has one row.

    No group is on both sides, where there are groups enough of each class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels, groups = training.labels, training.groups
    _, rows_of = np.unique(labels, return_counts=True)
    number = min(MAX_FOLDS, int(rows_of.min()))
    if number < 2:
        return []
    if number <= len(set(groups)) < len(groups):
        found = StratifiedGroupKFold(number, shuffle=True, random_state=seed).split(labels, labels, groups)
        whole = [part for part in found if all(len(np.unique(labels[rows])) == len(rows_of) for rows in part)]
        if len(whole) > 1:
            return whole
    return list(StratifiedKFold(number, shuffle=True, random_state=seed).split(labels, labels))


def fit_knn(training: LabelledEmbeddings, k: int = 20) -> Classifier:
    """The k nearest by cosine, each with one vote."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(training.features, training.labels)
    return Classifier(model.predict_proba, {"k": k})


def limit_k(k: int, sets: Iterable[LabelledEmbeddings], classes: Sequence[str]) -> int:
    """k, or less: no more than the smallest set has rows of a class on average; beyond, other classes must come in.

    One for all sets, so that their scores differ by what was trained on alone.
    """
    return min(k, max(1, min(map(len, sets)) // len(classes)))
