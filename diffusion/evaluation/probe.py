"""Probes: a linear and a k-NN classifier on frozen embeddings, scored on real images with 95 % intervals.

Letters: N training rows, M test rows, D width of the embedding, C classes, R resamples.
Intervals are those of the bootstrap (Efron 1979) over the test set: they show how much a score depends on the images, or
slides, that it was taken from, and not what another training set would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusion.evaluation.classifiers import fit_knn, fit_linear, limit_k
from diffusion.evaluation.metrics.classification import confusion_matrix, resampled_scores
from diffusion.evaluation.metrics.intervals import (
    CLUSTER_RESAMPLES,
    FEW_GROUPS,
    ClusterBootstrap,
    Value,
    percentile_value,
)
from diffusion.evaluation.sets.features import Features
from diffusion.evaluation.sets.labelled import LabelledEmbeddings

PROBES = {"linear": "linear probe", "knn": "k-NN"}


@dataclass
class ProbeResult:
    """The scores, on the test set, of one probe trained on one set."""

    probe: str
    training: str
    counts: dict[str, int]  # class -> training rows
    setting: dict[str, float]
    confusion: np.ndarray  # (C, C) test rows: true classes down, predicted ones across
    resampled: dict[str, np.ndarray]  # metric -> (1 + R,)
    notes: list[str] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Value]:
        """Every metric with its interval."""
        return {metric: percentile_value(values) for metric, values in self.resampled.items()}

    def difference_to(self, other: ProbeResult) -> dict[str, Value]:
        """Return the differences of the metrics, taken on the same resamples."""
        return {metric: percentile_value(values - other.resampled[metric]) for metric, values in self.resampled.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        values = {metric: value._asdict() for metric, value in self.values.items()}
        rest = {"confusion": self.confusion.tolist(), "notes": self.notes}
        return {"training_images": self.counts, "setting": self.setting, "values": values, **rest}


def run_probes(
    sets: Mapping[str, LabelledEmbeddings],
    test: LabelledEmbeddings,
    classes: Sequence[str],
    k: int = 20,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> list[ProbeResult]:
    """Train both probes on each set and score them on the same resamples of the test set.

    sets: by name; each has every class. k: neighbours that vote, limited by `limit_k`. progress: called after each probe.
    """
    resamples = ClusterBootstrap(test.groups, seed)
    k = limit_k(k, sets.values(), classes)
    results = []
    for training, rows in sets.items():
        counts = dict(zip(classes, np.bincount(rows.labels, minlength=len(classes)).tolist(), strict=True))
        for kind in PROBES:
            classifier = fit_linear(rows, seed) if kind == "linear" else fit_knn(rows, k)
            probabilities = classifier.predict(test.features)
            confusion = confusion_matrix(test.labels, probabilities.argmax(1), len(classes))
            resampled = resampled_scores(probabilities, test.labels, resamples)
            notes = classifier.notes + perfect_score_notes(confusion, test)
            results.append(ProbeResult(kind, training, counts, classifier.setting, confusion, resampled, notes))
            progress()
    return results


def probe_encoders(
    features: Mapping[str, Mapping[str, Features]],
    trainings: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    k: int = 20,
    per_class: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, list[ProbeResult]], list[str]]:
    """Return the results of each encoder's probes, and sentences on what a reader of their scores must know.

    features: of each encoder, those of the set `test` and of the training sets. trainings: the parts of each training, by
    its name. per_class: training images of each class and part, drawn at random; None: all.
    """
    results: dict[str, list[ProbeResult]] = {}
    notes: list[str] = []
    total = len(features) * len(trainings) * len(PROBES)
    with tqdm(total=total, unit="probe", leave=False) as bar:
        for encoder, features_of_sets in features.items():
            bar.set_description(encoder)
            test = LabelledEmbeddings.from_features(features_of_sets["test"], classes)
            parts = {
                name: LabelledEmbeddings.from_features(each, classes, per_class, seed)
                for name, each in features_of_sets.items()
                if name != "test"
            }
            sets = {
                name: reduce(LabelledEmbeddings.concat, [parts[part] for part in names])
                for name, names in trainings.items()
            }
            results[encoder] = run_probes(sets, test, classes, k, seed, bar.update)
            if not notes:  # they are the same for all encoders
                notes += interval_notes(test, classes)
                if (limited := limit_k(k, sets.values(), classes)) < k:
                    notes.append(f"k is {limited} and not {k}: a class has no more training images on average.")
    for encoder, probed in results.items():
        notes += [
            f"{encoder}, {PROBES[each.probe]} on {each.training}: {note}" for each in probed for note in each.notes
        ]
    return results, notes


def perfect_score_notes(confusion: np.ndarray, test: LabelledEmbeddings) -> list[str]:
    """Bound the errors of a perfect score by the rule of three; the bootstrap never draws an error that it has not seen."""
    if confusion.trace() < confusion.sum():
        return []
    count = len(np.unique(test.groups))
    bound = (
        f"errors of up to {3 / count:.1%} are not excluded"
        if count >= FEW_GROUPS
        else "too few were tested to bound them"
    )
    return [f"no test image is wrong, so that intervals have no width; {bound}."]


def interval_notes(test: LabelledEmbeddings, classes: Sequence[str]) -> list[str]:
    """Return sentences that say what the intervals were drawn from, and how far they can be trusted."""
    groups = np.unique(test.groups)
    slides = sum(group.endswith("/") for group in groups)
    if not slides:
        return [
            f"Intervals (95 %) are from {CLUSTER_RESAMPLES} resamples of single test images ({len(groups)}), as no folders of "
            "slides lie below the classes: too narrow, if several images are of one slide."
        ]
    unfiled = f" and {len(groups) - slides} images that lie in none" if slides < len(groups) else ""
    notes = [
        f"Intervals (95 %) are from {CLUSTER_RESAMPLES} resamples of whole slides: the {slides} folders below the classes of the "
        f"test set{unfiled}."
    ]
    if len(groups) < FEW_GROUPS:
        notes.append(f"So few slides make no interval that can be trusted; expected {FEW_GROUPS} or more.")
    single = [name for i, name in enumerate(classes) if len(np.unique(test.groups[test.labels == i])) == 1]
    if single:
        notes.append(f"All test images of {', '.join(single)} are of one slide: class and slide cannot be told apart.")
    return notes
