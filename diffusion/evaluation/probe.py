"""Classes told from frozen embeddings: a linear probe and nearest neighbours, scored on real images with 95 % intervals.

Letters: N training rows, M test rows, D width of the embedding, C classes, R resamples.
Intervals are the bootstrap's (Efron 1979) over the test set, and say how much a score owes to the images, or slides, that
it was taken from. What another training set would give they do not say.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffusion.evaluation.metrics.scores import Value
from diffusion.evaluation.sets.classes import class_of, group_of
from diffusion.evaluation.sets.features import Features
from diffusion.utils.errors import InputError

METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
}
PROBES = {"linear": "linear probe", "knn": "k-NN"}
REPLICATES = 1000
FEW_GROUPS = 20  # below as many, percentiles of the bootstrap are known to be too narrow
STRENGTHS = tuple(10.0**power for power in range(-5, 2))  # C: 1 / strength of the L2 penalty, the strongest first
USUAL_STRENGTH = 1e-2  # where there are too few images to choose by
FOLDS = 5
MAX_STEPS = 1000  # of L-BFGS


@dataclass(frozen=True)
class Labelled:
    """Embeddings with their classes."""

    features: np.ndarray  # float32 (N, D)
    labels: np.ndarray  # (N,) numbers of the classes
    groups: np.ndarray  # (N,) names of what belongs together: slides, or single images

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, features: Features, classes: Sequence[str], per_class: int | None = None, seed: int = 0) -> Labelled:
        """The rows of all images or, of each class, of some drawn at random: a larger draw holds the smaller ones.

        A class of `classes` may lack. Raises InputError for one of which no image could be read.
        """
        reasons = {class_of(name): reason for name, reason in features.bad.items()}
        for name in sorted(reasons.keys() - {class_of(row.name) for row in features.rows}):
            raise InputError(f"no image of class {name} can be used ({reasons[name]}); mend them or leave it out")
        images = draw_images(features, classes, per_class, seed)
        numbers = [i for i, row in enumerate(features.rows) if row.name in images]
        names = [features.rows[i].name for i in numbers]
        labels = np.array([classes.index(class_of(name)) for name in names], dtype=np.int64)
        return cls(features.take(numbers).numpy(), labels, np.array([group_of(name) for name in names]))

    def joined(self, other: Labelled) -> Labelled:
        return Labelled(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.groups, other.groups]),
        )


def draw_images(features: Features, classes: Sequence[str], per_class: int | None, seed: int) -> set[str]:
    """The names of images to use: of each class all, or the first of a random order."""
    names = sorted({row.name for row in features.rows})
    drawn: set[str] = set()
    for i, of_class in enumerate(classes):
        own = [name for name in names if class_of(name) == of_class]
        order = np.random.default_rng((seed, i)).permutation(len(own))
        drawn |= {own[j] for j in order[:per_class]}
    return drawn


@dataclass(frozen=True)
class Resamples:
    """A set drawn again and again, whole groups at once: each time the weights of its rows.

    The same seed gives the same draws, so that differences of scores are taken on the same images.
    """

    groups: np.ndarray  # (M,) names
    seed: int = 0
    replicates: int = REPLICATES

    def __iter__(self) -> Iterator[np.ndarray]:
        """Weights (M,): first of the set as it is, all 1; then, of two groups or more, how often that of each row was drawn."""
        yield np.ones(len(self.groups))
        names, numbers = np.unique(self.groups, return_inverse=True)
        generator = np.random.default_rng(self.seed)
        for _ in range(self.replicates if len(names) > 1 else 0):
            times = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
            yield times[numbers].astype(np.float64)


@dataclass(frozen=True)
class Ranking:
    """Test rows in the order of a score, for the area under the ROC curve of any weights."""

    order: np.ndarray  # (M,)
    positive: np.ndarray  # (M,) in that order: 1 where the row is of the class
    ties: np.ndarray  # first places of equal scores

    @classmethod
    def of(cls, score: np.ndarray, positive: np.ndarray) -> Ranking:
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


def measure(shares: np.ndarray, labels: np.ndarray, resamples: Resamples) -> dict[str, np.ndarray]:
    """Every metric of class shares (M, C) on each resample, (1 + R,): the first value is that of the set itself.

    A class that a resample lacks is left out of its means; with no pair to compare, the AUROC is not a number.
    """
    classes, told = shares.shape[1], shares.argmax(1)
    one_against_rest = range(classes) if classes > 2 else [1]
    rankings = [Ranking.of(shares[:, i], labels == i) for i in one_against_rest]
    rows = []
    for weights in resamples:
        areas = [area for ranking in rankings if not np.isnan(area := ranking.area(weights))]
        confusion = confusion_of(labels, told, classes, weights)
        rows.append([*of_confusion(confusion), np.mean(areas) if areas else np.nan])
    return dict(zip(METRICS, np.array(rows).T, strict=True))


def confusion_of(labels: np.ndarray, told: np.ndarray, classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Rows, or their weights, summed (C, C): true classes down, told ones across."""
    return np.bincount(labels * classes + told, weights, classes**2).reshape(classes, classes)


def of_confusion(confusion: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, balanced accuracy and macro F1 of counts (C, C): true classes down, told ones across."""
    hits, true, told = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall = hits[true > 0] / true[true > 0]
    either = true + told > 0
    f1 = 2 * hits[either] / (true + told)[either]
    return float(hits.sum() / confusion.sum()), float(recall.mean()), float(f1.mean())


def chance_of(confusion: np.ndarray) -> dict[str, float]:
    """What guessing scores on the test set of a confusion (C, C): always the largest class, or any at random."""
    true = confusion.sum(1)
    return {"accuracy": float(true.max() / true.sum()), "balanced_accuracy": 1 / len(true), "auroc": 0.5}


@dataclass
class Probed:
    """How a probe that was trained on one set does on the test set."""

    probe: str
    training: str
    counts: dict[str, int]  # class -> training rows
    setting: dict[str, float]
    confusion: np.ndarray  # (C, C) test rows: true classes down, told ones across
    resampled: dict[str, np.ndarray]  # metric -> (1 + R,)
    notes: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Value]:
        return {metric: with_interval(values) for metric, values in self.resampled.items()}

    def minus(self, other: Probed) -> dict[str, Value]:
        """Differences of the metrics, taken on the same resamples."""
        return {metric: with_interval(values - other.resampled[metric]) for metric, values in self.resampled.items()}

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        values = {metric: value._asdict() for metric, value in self.values.items()}
        rest = {"confusion": self.confusion.tolist(), "notes": self.notes}
        return {"training_images": self.counts, "setting": self.setting, "values": values, **rest}


def with_interval(values: np.ndarray) -> Value:
    """The first of (1 + R,) values, and the percentiles of the others; none where these are no numbers."""
    others = values[1:][np.isfinite(values[1:])]
    bounds = np.percentile(others, (2.5, 97.5)).tolist() if len(others) else (None, None)
    return Value(float(values[0]), *bounds)


def probe(
    sets: Mapping[str, Labelled],
    test: Labelled,
    classes: Sequence[str],
    k: int = 20,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> list[Probed]:
    """Train both probes on each set, all of which have every class, and score them on the same resamples.

    k: neighbours that vote, as `usable_k` has them. progress: is called after each probe.
    """
    resamples = Resamples(test.groups, seed)
    k = usable_k(k, sets.values(), classes)
    done = []
    for training, rows in sets.items():
        counts = dict(zip(classes, np.bincount(rows.labels, minlength=len(classes)).tolist(), strict=True))
        for kind in PROBES:
            fitted = fit_linear(rows, seed) if kind == "linear" else fit_neighbours(rows, k)
            shares = fitted.shares(test.features)
            confusion = confusion_of(test.labels, shares.argmax(1), len(classes))
            resampled = measure(shares, test.labels, resamples)
            notes = fitted.notes + perfect_notes(confusion, test)
            done.append(Probed(kind, training, counts, fitted.setting, confusion, resampled, notes))
            progress()
    return done


def perfect_notes(confusion: np.ndarray, test: Labelled) -> list[str]:
    """What the bootstrap cannot say, as it never draws an error that it has not seen: the rule of three does."""
    if confusion.trace() < confusion.sum():
        return []
    count = len(np.unique(test.groups))
    most = (
        f"errors of up to {3 / count:.1%} are not excluded"
        if count >= FEW_GROUPS
        else "too few were tested to bound them"
    )
    return [f"no test image is wrong, so that intervals have no width; {most}."]


@dataclass(frozen=True)
class Fitted:
    """A classifier: `shares` maps embeddings (M, D) to what each class has of 1, (M, C)."""

    shares: Callable[[np.ndarray], np.ndarray]
    setting: dict[str, float]
    notes: list[str] = field(default_factory=list)


def fit_linear(training: Labelled, seed: int = 0) -> Fitted:
    """Logistic regression on standardized features, its L2 penalty chosen by cross-validation on the training set."""
    from sklearn.preprocessing import StandardScaler

    notes = []
    parts = folds(training, seed)
    strength = choose_strength(training, parts) if parts else USUAL_STRENGTH
    if not parts:
        notes.append(f"too few images of a class to choose C by; it is {USUAL_STRENGTH:g}.")
    scaler = StandardScaler().fit(training.features)
    model = regression(strength)
    fit_quietly(model, scaler.transform(training.features), training.labels)
    if model.n_iter_.max() >= MAX_STEPS:
        notes.append(f"not converged after {MAX_STEPS} steps.")
    return Fitted(lambda features: model.predict_proba(scaler.transform(features)), {"C": strength}, notes)


def regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=MAX_STEPS, warm_start=True)


def fit_quietly(model: Any, features: np.ndarray, labels: np.ndarray) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in one line, where it is the final fit
        model.fit(features, labels)


def choose_strength(training: Labelled, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The C of STRENGTHS with the least log loss on rows that were held out; of equals the strongest penalty."""
    from sklearn.preprocessing import StandardScaler

    losses = np.zeros(len(STRENGTHS))
    for fitted, held_out in parts:
        scaler = StandardScaler().fit(training.features[fitted])
        inside, outside = (scaler.transform(training.features[rows]) for rows in (fitted, held_out))
        model = regression(STRENGTHS[0])
        for i, strength in enumerate(STRENGTHS):  # each fit starts from the one before
            fit_quietly(model.set_params(C=strength), inside, training.labels[fitted])
            own = model.predict_proba(outside)[np.arange(len(held_out)), training.labels[held_out]]
            losses[i] -= np.log(own.clip(min=np.finfo(own.dtype).tiny)).sum()
    return STRENGTHS[int(losses.argmin())]


def folds(training: Labelled, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit and rows to hold out, each time with all classes; none when a class has one row.

    No group is on both sides, where there are groups enough of each class.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels, groups = training.labels, training.groups
    _, rows_of = np.unique(labels, return_counts=True)
    number = min(FOLDS, int(rows_of.min()))
    if number < 2:
        return []
    if number <= len(set(groups)) < len(groups):
        found = StratifiedGroupKFold(number, shuffle=True, random_state=seed).split(labels, labels, groups)
        whole = [part for part in found if all(len(np.unique(labels[rows])) == len(rows_of) for rows in part)]
        if len(whole) > 1:
            return whole
    return list(StratifiedKFold(number, shuffle=True, random_state=seed).split(labels, labels))


def fit_neighbours(training: Labelled, k: int = 20) -> Fitted:
    """The k nearest by cosine, each with one vote."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(training.features, training.labels)
    return Fitted(model.predict_proba, {"k": k})


def usable_k(k: int, sets: Iterable[Labelled], classes: Sequence[str]) -> int:
    """k, or less: no more than the smallest set has rows of a class on average; beyond, other classes must come in.

    One for all sets, so that their scores differ by what was trained on alone.
    """
    return min(k, max(1, min(map(len, sets)) // len(classes)))


def group_notes(test: Labelled, classes: Sequence[str]) -> list[str]:
    """What the intervals were drawn from, and what that is worth, in sentences."""
    groups = np.unique(test.groups)
    slides = sum(group.endswith("/") for group in groups)
    if not slides:
        return [
            f"Intervals (95 %) are from {REPLICATES} resamples of single test images ({len(groups)}), as no folders of "
            "slides lie below the classes: too narrow, if several images are of one slide."
        ]
    alone = f" and {len(groups) - slides} images that lie in none" if slides < len(groups) else ""
    notes = [
        f"Intervals (95 %) are from {REPLICATES} resamples of whole slides: the {slides} folders below the classes of the "
        f"test set{alone}."
    ]
    if len(groups) < FEW_GROUPS:
        notes.append(f"So few slides make no interval that can be trusted; expected {FEW_GROUPS} or more.")
    single = [name for i, name in enumerate(classes) if len(np.unique(test.groups[test.labels == i])) == 1]
    if single:
        notes.append(f"All test images of {', '.join(single)} are of one slide: class and slide cannot be told apart.")
    return notes
