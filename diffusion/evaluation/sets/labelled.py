"""Embeddings with the classes and slides of their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion.evaluation.sets.classes import bootstrap_group, class_of
from diffusion.evaluation.sets.features import Features
from diffusion.utils.errors import InputError


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings with their classes."""

    features: np.ndarray  # float32 (N, D)
    labels: np.ndarray  # (N,) numbers of the classes
    groups: np.ndarray  # (N,) names of what is resampled together: slides, or single images

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_features(
        cls, features: Features, classes: Sequence[str], per_class: int | None = None, seed: int = 0
    ) -> LabelledEmbeddings:
        """Return the rows of all images or, of each class, of `per_class` drawn at random; a larger draw holds the smaller.

        A class of `classes` may be missing. Raises InputError for a class of which no image could be read.
        """
        reasons = {class_of(name): reason for name, reason in features.bad.items()}
        for name in sorted(reasons.keys() - {class_of(row.name) for row in features.rows}):
            raise InputError(f"no image of class {name} can be used ({reasons[name]}); mend them or leave it out")
        images = draw_images(features, classes, per_class, seed)
        numbers = [i for i, row in enumerate(features.rows) if row.name in images]
        names = [features.rows[i].name for i in numbers]
        labels = np.array([classes.index(class_of(name)) for name in names], dtype=np.int64)
        return cls(features.take(numbers).numpy(), labels, np.array([bootstrap_group(name) for name in names]))

    def concat(self, other: LabelledEmbeddings) -> LabelledEmbeddings:
        """Return the rows of this set, then those of another one."""
        return LabelledEmbeddings(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.groups, other.groups]),
        )


def draw_images(features: Features, classes: Sequence[str], per_class: int | None, seed: int) -> set[str]:
    """Return the names of images to use: all of each class, or the first of a random order."""
    names = sorted({row.name for row in features.rows})
    drawn: set[str] = set()
    for i, label in enumerate(classes):
        own = [name for name in names if class_of(name) == label]
        order = np.random.default_rng((seed, i)).permutation(len(own))
        drawn |= {own[j] for j in order[:per_class]}
    return drawn
