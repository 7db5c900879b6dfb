"""Everything that is measured of a synthetic set against a real one, in one encoder's features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion.evaluation.metrics import intervals
from diffusion.evaluation.metrics.distances import (
    PRDC_NEIGHBOURS,
    SAMPLES_PER_FEATURE,
    FidExtrapolation,
    compute_fid,
    compute_kid,
    compute_prdc,
    extrapolate_fid,
    fid_influence,
    fid_of_gaussians,
    split_half_fid,
)
from diffusion.evaluation.metrics.intervals import Value, mean_value
from diffusion.evaluation.metrics.moments import fit_gaussian
from diffusion.evaluation.metrics.pairs import NearestNeighbours, Pairs, compare_pairs, find_nearest
from diffusion.evaluation.sets.features import Features
from diffusion.formats import METRICS
from diffusion.utils.errors import InputError

REPLICATES = 50  # of the bootstrap of a Frechet distance: it tells the standard error to a tenth
# rows of a set that are held at once, for what cannot be summed up batch by batch
HALVED_ROWS, PRDC_ROWS, MAX_ROWS = 10_000, 10_000, 50_000
DUPLICATE_COSINE = 0.99999  # cosine from which two images are taken for one
EXTRAPOLATION_SAMPLES = 2 * SAMPLES_PER_FEATURE  # samples for each number of a feature


class Quantity(NamedTuple):
    """What a value is called, and whether more of it is better; None of what others are only compared with."""

    title: str
    more_is_better: bool | None
    about: str


QUANTITIES = {
    "fd": Quantity("Fréchet distance", False, "between Gaussians fitted to the features; the FID, if they are Inception's"),
    "fd_infinity": Quantity("Fréchet distance, extrapolated", False, "to infinitely many images, which takes its bias away"),
    "kid": Quantity("Kernel distance × 1000", False, "unbiased squared MMD with a cubic kernel; the KID, if features are Inception's"),
    "precision": Quantity(
        "Precision", True, f"share of synthetic images within reach of a real one: up to its {PRDC_NEIGHBOURS}th neighbour"
    ),
    "recall": Quantity("Recall", True, "share of real images within reach of a synthetic one"),
    "density": Quantity("Density", True, f"number of real images within whose reach a synthetic one is, over {PRDC_NEIGHBOURS}"),
    "coverage": Quantity("Coverage", True, "share of real images with a synthetic one within reach"),
    "similarity": Quantity("Similarity of pairs", True, "mean cosine of a real image and the one sampled for it"),
    "random_similarity": Quantity("Similarity of random pairs", None, "the same of images that do not belong together, to compare with"),
    "above_random": Quantity("Pairs above random", True, "how often a pair is more similar than a random one; 0.5 is chance"),
    "feature_distance": Quantity("Feature distance of pairs", False, "Euclidean, where two random real images are 1 apart"),
    "nearest_training": Quantity("Nearest training image", None, "mean cosine of a synthetic image and the training image most like it"),
    "nearest_training_of_real": Quantity("The same of real images", None, "to compare with: samples that lie nearer may be copies"),
}  # fmt: skip


@dataclass
class Scores:
    """What one encoder says of a synthetic set; `notes`: what a reader of its values must know, in sentences.

    deviations: of the Frechet distance, as `FidEstimate` has them.
    """

    encoder: str
    width: int
    counts: dict[str, int]
    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pairs: Pairs | None = None
    neighbours: NearestNeighbours | None = None
    extrapolation: FidExtrapolation | None = None
    deviations: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        values = {name: value._asdict() for name, value in self.values.items()}
        record = {"width": self.width, "counts": self.counts, "values": values, "notes": self.notes}
        return record | {"deviations": [float(f"{deviation:.6g}") for deviation in self.deviations]}


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
    if training is not None and training.width != real.width:
        raise InputError(
            f"training features are {training.width} wide, real ones {real.width}; take all from one encoder"
        )
    scores = Scores(real.encoder, real.width, {"real": len(real), "synthetic": len(synthetic)})
    fewest = min(len(real), len(synthetic))
    if fewest < 2:
        raise InputError(f"got {len(real)} real and {len(synthetic)} synthetic images, expected at least 2 of each")
    if "fd" in metrics:
        found = estimate_fid(real, synthetic, seed, replicates, device)
        scores.deviations = found.deviations
        bounds = intervals.normal_ci(found.value, found.error, least=0.0) if len(found.deviations) else (None, None)
        scores.values["fd"] = Value(found.value, *bounds)
        scores.notes += bias_notes(real, fewest, seed, device)
    if "fd_infinity" in metrics and fewest < EXTRAPOLATION_SAMPLES * real.width:
        scores.notes.append(
            f"The Fréchet distance is extrapolated to infinitely many images from {EXTRAPOLATION_SAMPLES * real.width} on."
        )
    elif "fd_infinity" in metrics:
        rows = [part.sample(MAX_ROWS, seed).to(device) for part in (real, synthetic)]
        scores.extrapolation = extrapolate_fid(*rows, seed=seed)
        scores.values["fd_infinity"] = Value(scores.extrapolation.value)
    if "kid" in metrics:
        rows = [part.sample(MAX_ROWS, seed).to(device) for part in (real, synthetic)]
        value, error = compute_kid(*rows, seed=seed)
        scores.values["kid"] = Value(1000 * value, *intervals.normal_ci(1000 * value, 1000 * error))
    if "prdc" in metrics:
        add_prdc(scores, real, synthetic, seed, device)
    if "similarity" in metrics:
        add_pairs(scores, real, synthetic, seed)
    if "neighbours" in metrics and training is not None:
        scores.neighbours = find_nearest(synthetic, training, device)
        of_real = find_nearest(real, training, device)
        for name, found in (("nearest_training", scores.neighbours), ("nearest_training_of_real", of_real)):
            scores.values[name] = mean_value(found.similarity, seed)
        there = int((of_real.similarity > DUPLICATE_COSINE).sum())
        if there:
            scores.notes.append(
                f"{there} real images are among those of training, too: the nearest is the image itself."
            )
    return scores


class FidEstimate(NamedTuple):
    """A Frechet distance, its standard error, and deviations of it over sets drawn again (replicates,).

    Deviations of two distances whose sets have as many rows are of the same draws: what both share falls out of their difference.
    """

    value: float
    error: float
    deviations: np.ndarray


def estimate_fid(
    real: Features, synthetic: Features, seed: int = 0, replicates: int = 0, device: torch.device | str = "cpu"
) -> FidEstimate:
    """The Frechet distance of two sets, part by part; how sure it is by the bootstrap or, of more rows than columns, where
    that takes long and is far too wide, by its derivative. Without replicates no error is taken."""
    nothing = np.zeros(0)
    if max(len(real), len(synthetic)) <= real.width:
        rows = [part.take(range(len(part))).to(device) for part in (real, synthetic)]
        value = compute_fid(*rows)
        again = intervals.bootstrap_deviations(compute_fid, *rows, replicates, seed) if replicates > 1 else nothing
        return FidEstimate(value, float(again.std(ddof=1)) if len(again) else 0.0, again)
    both = (real, synthetic)
    gaussians = [fit_gaussian(part, device) for part in both]
    value = fid_of_gaussians(*gaussians)
    if replicates < 2 or min(len(real), len(synthetic)) <= real.width:
        return FidEstimate(value, 0.0, nothing)
    moves = []
    for part, own, other in zip(both, gaussians, reversed(gaussians), strict=True):
        influence = fid_influence(own, other)
        moves.append(torch.cat([influence(rows).cpu() for rows in part]).numpy())
    error = sum(move.var(ddof=1) / len(move) for move in moves) ** 0.5
    picks = intervals.draw_resamples([len(move) for move in moves], replicates, seed)
    again = [sum(move[own].mean() for move, own in zip(moves, pick, strict=True)) for pick in picks]
    return FidEstimate(value, float(error), np.array(again))


def bias_notes(real: Features, fewest: int, seed: int, device: torch.device | str) -> list[str]:
    """How far the number of images alone moves a Frechet distance."""
    notes = []
    if fewest <= real.width:
        notes.append(
            f"Fewer images ({fewest}) than the {real.width} numbers of a feature: the Fréchet distance is far too large, and "
            "only fit to compare sets of equal size."
        )
    if len(real) >= 4:
        rows = real.sample(HALVED_ROWS, seed).to(device)
        apart = split_half_fid(rows, seed)
        notes.append(
            f"Two random halves of the real images ({len(rows) // 2} each) have a Fréchet distance of {apart:.4g}, although "
            "they are of one kind: that much is bias at their number, which falls slowly as there are more."
        )
    return notes


def add_prdc(scores: Scores, real: Features, synthetic: Features, seed: int, device: torch.device | str) -> None:
    rows = [part.sample(PRDC_ROWS, seed).to(device) for part in (real, synthetic)]
    if min(map(len, rows)) <= PRDC_NEIGHBOURS:
        scores.notes.append(
            f"Precision, recall, density and coverage need more than {PRDC_NEIGHBOURS} images of each kind."
        )
        return
    if len(rows[0]) < len(real) or len(rows[1]) < len(synthetic):
        scores.notes.append(
            f"Precision, recall, density and coverage are taken from {PRDC_ROWS} random images of a set."
        )
    for name, of_each in compute_prdc(*rows)._asdict().items():
        if name == "density":  # which counts, where the others ask whether
            counts = of_each.cpu().numpy()
            # where all are the same, as in no neighbourhood at all, they say nothing of others
            scores.values[name] = mean_value(counts, seed) if np.ptp(counts) else Value(float(counts[0]))
        else:
            share, hits = float(of_each.mean()), int(of_each.sum())
            scores.values[name] = Value(share, *intervals.wilson_ci(hits, len(of_each)))


def add_pairs(scores: Scores, real: Features, synthetic: Features, seed: int) -> None:
    pairs = compare_pairs(real, synthetic, seed)
    if pairs is None:
        scores.notes.append("No pairs: fewer than two names are in both sets.")
        return
    scores.pairs = pairs
    alone = len(real) + len(synthetic) - 2 * len(pairs.rows)
    if alone:
        scores.notes.append(f"Images without a partner of their name: {alone}; they are in no pair.")
    scores.values["similarity"] = mean_value(pairs.similarity, seed)
    scores.values["random_similarity"] = mean_value(pairs.random, seed)
    scores.values["above_random"] = mean_value(pairs.above_random, seed)
    scores.values["feature_distance"] = mean_value(pairs.distance, seed)
