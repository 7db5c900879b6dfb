"""Everything that is measured of a synthetic set against a real one, in one encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion.errors import InputError
from diffusion.evaluation import intervals
from diffusion.evaluation.distances import (
    NEIGHBOURS,
    Extrapolation,
    frechet_at_infinity,
    frechet_distance,
    frechet_of_gaussians,
    halves,
    kernel_distance,
    manifolds,
)
from diffusion.evaluation.features import Features
from diffusion.evaluation.moments import fitted
from diffusion.evaluation.pairs import Nearest, Pairs, compare_pairs, nearest

METRICS = ("fd", "fd_infinity", "kid", "prdc", "similarity", "neighbours")
REPLICATES = 50  # of the bootstrap of a Frechet distance: its standard error is known to a tenth
# rows of a set that are held at once, for what cannot be summed up batch by batch
BOOTSTRAP_ROWS, MANIFOLD_ROWS, EXTRAPOLATION_ROWS = 10_000, 10_000, 50_000
EXTRAPOLATED_FROM = 2  # samples for each number of a feature


class Quantity(NamedTuple):
    """What a value is called, and whether more of it is better."""

    title: str
    more_is_better: bool
    about: str


QUANTITIES = {
    "fd": Quantity("Fréchet distance", False, "between Gaussians fitted to the features; FID, where they are Inception's"),
    "fd_infinity": Quantity("Fréchet distance, extrapolated", False, "to infinitely many images, without bias"),
    "kid": Quantity("Kernel distance × 1000", False, "unbiased squared MMD with a cubic kernel; KID, where features are Inception's"),
    "precision": Quantity("Precision", True, f"share of synthetic images among the {NEIGHBOURS} nearest neighbours of a real one"),
    "recall": Quantity("Recall", True, f"share of real images among the {NEIGHBOURS} nearest neighbours of a synthetic one"),
    "density": Quantity("Density", True, "neighbourhoods of real images that a synthetic one is in, over those expected"),
    "coverage": Quantity("Coverage", True, "share of real images with a synthetic one in their neighbourhood"),
    "similarity": Quantity("Similarity of pairs", True, "mean cosine of a real image and the one sampled for it"),
    "random_similarity": Quantity("Similarity of random pairs", False, "the same, of images that do not belong together"),
    "above_random": Quantity("Pairs above random", True, "how often a pair is more similar than a random one; 0.5 is chance"),
    "feature_distance": Quantity("Feature distance of pairs", False, "Euclidean; 1 is the distance of two random real images"),
    "nearest_training": Quantity("Nearest training image", False, "mean cosine of a synthetic image and the most similar of training"),
    "nearest_training_of_real": Quantity("The same of real images", False, "of the real set: samples should not lie nearer"),
}  # fmt: skip


class Value(NamedTuple):
    """A number with its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class Scores:
    """What one encoder says of a synthetic set; `notes`: what a reader of its values must know, in sentences."""

    encoder: str
    width: int
    counts: dict[str, int]
    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pairs: Pairs | None = None
    neighbours: Nearest | None = None
    extrapolation: Extrapolation | None = None

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        values = {name: value._asdict() for name, value in self.values.items()}
        return {"width": self.width, "counts": self.counts, "values": values, "notes": self.notes}


def score(
    real: Features,
    synthetic: Features,
    metrics: Sequence[str] = METRICS,
    training: Features | None = None,
    seed: int = 0,
    replicates: int = REPLICATES,
    device: torch.device | str = "cpu",
) -> Scores:
    """Measure a synthetic set against a real one. device: where sums are taken; it must know float64.

    Raises InputError for a metric that is none, widths that differ, and fewer than two rows on a side.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise InputError(f"metric {unknown[0]} is none of {', '.join(METRICS)}")
    if real.width != synthetic.width:
        raise InputError(
            f"real features are {real.width} wide, synthetic ones {synthetic.width}; take both from one encoder"
        )
    scores = Scores(real.encoder, real.width, {"real": len(real), "synthetic": len(synthetic)})
    fewest = min(len(real), len(synthetic))
    if fewest < 2:
        raise InputError(f"got {len(real)} real and {len(synthetic)} synthetic images, expected at least 2 of each")
    if "fd" in metrics:
        scores.values["fd"] = frechet(real, synthetic, seed, replicates, device)
        scores.notes += bias_notes(real, fewest, seed, device)
    if "fd_infinity" in metrics and fewest >= EXTRAPOLATED_FROM * real.width:
        rows = [part.sample(EXTRAPOLATION_ROWS, seed).to(device) for part in (real, synthetic)]
        scores.extrapolation = frechet_at_infinity(*rows, seed=seed)
        scores.values["fd_infinity"] = Value(scores.extrapolation.value)
    if "kid" in metrics:
        rows = [part.sample(EXTRAPOLATION_ROWS, seed).to(device) for part in (real, synthetic)]
        value, error = kernel_distance(*rows, seed=seed)
        scores.values["kid"] = Value(1000 * value, *intervals.around(1000 * value, 1000 * error))
    if "prdc" in metrics:
        add_manifolds(scores, real, synthetic, seed, device)
    if "similarity" in metrics:
        add_pairs(scores, real, synthetic, seed)
    if "neighbours" in metrics and training is not None:
        scores.neighbours = nearest(synthetic, training, device)
        of_real = nearest(real, training, device)
        for name, found in (("nearest_training", scores.neighbours), ("nearest_training_of_real", of_real)):
            scores.values[name] = mean_of(found.similarity, seed)
    return scores


def frechet(
    real: Features, synthetic: Features, seed: int, replicates: int, device: torch.device | str = "cpu"
) -> Value:
    """The Frechet distance of two sets, batch by batch, and its interval by the bootstrap.

    The spread is taken over no more than BOOTSTRAP_ROWS of each set, and falls with the root of their number.
    """
    few = max(len(real), len(synthetic)) <= real.width
    if few:
        value = frechet_distance(*(part.take(range(len(part))).to(device) for part in (real, synthetic)))
    else:
        value = frechet_of_gaussians(fitted(real, device), fitted(synthetic, device))
    if replicates < 2:
        return Value(value)
    rows = [part.sample(BOOTSTRAP_ROWS, seed).to(device) for part in (real, synthetic)]
    error = intervals.standard_error(frechet_distance, *rows, replicates, seed)
    share = min(map(len, rows)) / min(len(real), len(synthetic))
    return Value(value, *intervals.around(value, error * share**0.5, least=0.0))


def bias_notes(real: Features, fewest: int, seed: int, device: torch.device | str) -> list[str]:
    """How far the number of images alone moves a Frechet distance."""
    notes = []
    if fewest <= real.width:
        notes.append(
            f"Fewer images ({fewest}) than the {real.width} numbers of a feature: the Fréchet distance is biased upwards, "
            "and only good for comparing sets of as many."
        )
    if len(real) >= 4:
        rows = real.sample(BOOTSTRAP_ROWS, seed).to(device)
        apart = halves(rows, seed)
        notes.append(
            f"Two random halves of the real images ({len(rows) // 2} each) have a Fréchet distance of {apart:.4g}, though "
            "they are of one kind: so much of a distance is bias at that number, about half as much at twice the number."
        )
    return notes


def add_manifolds(scores: Scores, real: Features, synthetic: Features, seed: int, device: torch.device | str) -> None:
    rows = [part.sample(MANIFOLD_ROWS, seed).to(device) for part in (real, synthetic)]
    if min(map(len, rows)) <= NEIGHBOURS:
        scores.notes.append(f"Precision, recall, density and coverage need more than {NEIGHBOURS} images of each kind.")
        return
    if len(rows[0]) < len(real) or len(rows[1]) < len(synthetic):
        scores.notes.append(
            f"Precision, recall, density and coverage are taken from {MANIFOLD_ROWS} random images of a set."
        )
    for name, of_each in manifolds(*rows)._asdict().items():
        if name == "density":  # which counts, where the others ask whether
            scores.values[name] = mean_of(of_each.cpu().numpy(), seed)
        else:
            share = float(of_each.mean())
            scores.values[name] = Value(share, *intervals.of_share(share, len(of_each)))


def add_pairs(scores: Scores, real: Features, synthetic: Features, seed: int) -> None:
    pairs = compare_pairs(real, synthetic, seed)
    if pairs is None:
        scores.notes.append("No pairs: fewer than two names are in both sets.")
        return
    scores.pairs = pairs
    alone = len(real) + len(synthetic) - 2 * len(pairs.rows)
    if alone:
        scores.notes.append(f"{alone} images have no partner of their name, and are in no pair.")
    scores.values["similarity"] = mean_of(pairs.similarity, seed)
    scores.values["random_similarity"] = mean_of(pairs.random, seed)
    scores.values["above_random"] = mean_of(pairs.above_random, seed)
    scores.values["feature_distance"] = mean_of(pairs.distance, seed)


def mean_of(values: np.ndarray, seed: int) -> Value:
    return Value(float(values.mean()), *intervals.of_mean(values, seed))
