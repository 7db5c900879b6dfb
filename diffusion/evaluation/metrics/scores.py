"""All scores of a synthetic set against a real one, in the features of one encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion.evaluation.metrics import intervals
from diffusion.evaluation.metrics.distances import (
    SAMPLES_PER_FEATURE,
    FidExtrapolation,
    compute_fid,
    compute_kid,
    compute_prdc,
    distinct_rows,
    extrapolate_fid,
    fid_influence,
    fid_of_gaussians,
    split_half_fid,
)
from diffusion.evaluation.metrics.intervals import Value, mean_value
from diffusion.evaluation.metrics.moments import fit_gaussian
from diffusion.evaluation.metrics.pairs import NearestNeighbours, Pairs, compare_pairs, find_nearest
from diffusion.evaluation.metrics.quantities import PRDC_NEIGHBOURS
from diffusion.evaluation.metrics.quantities import QUANTITIES as QUANTITIES  # command lines import it from here
from diffusion.evaluation.sets.features import Features
from diffusion.formats import ALL_METRICS, METRICS
from diffusion.utils.errors import InputError

REPLICATES = 50  # of the bootstrap of a Frechet distance: enough to know the standard error to a tenth
# rows of a set that are in memory at once, for scores that cannot be accumulated batch by batch
HALVED_ROWS, PRDC_ROWS, MAX_ROWS = 10_000, 10_000, 50_000
DUPLICATE_COSINE = 0.99999  # of features from which on two images are taken for the same
EXTRAPOLATION_SAMPLES = 2 * SAMPLES_PER_FEATURE  # samples / width from which on a distance is extrapolated


@dataclass
class Scores:
    """The scores of a synthetic set by one encoder.

    notes: what a reader of the values must know, in sentences. deviations: of the Frechet distance, as in `FidEstimate`.
    """

    encoder: str
    width: int
    counts: dict[str, int]
    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pairs: Pairs | None = field(default=None, repr=False)
    neighbours: NearestNeighbours | None = field(default=None, repr=False)
    extrapolation: FidExtrapolation | None = field(default=None, repr=False)
    deviations: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores for JSON."""
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
    """Score a synthetic set against a real one.

    training: the set among which the nearest image of each row is looked up. replicates: of the bootstrap of the Frechet
    distance; 0 for no interval. device: for the sums, which are in float64.
    Raises InputError for an unknown metric, widths that differ, and fewer than two rows on a side.
    """
    unknown = [metric for metric in metrics if metric not in ALL_METRICS]
    if unknown:
        raise InputError(f"metric {unknown[0]} is none of {', '.join(ALL_METRICS)}")
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
        add_fid(scores, real, synthetic, seed, replicates, device)
    if "fd_infinity" in metrics:
        add_extrapolation(scores, real, synthetic, seed, device)
    if "kid" in metrics:
        rows = [part.sample(MAX_ROWS, seed).to(device) for part in (real, synthetic)]
        value, error = compute_kid(_without_copies(scores, rows[0]), rows[1], seed=seed)
        scores.values["kid"] = Value(1000 * value, *intervals.normal_ci(1000 * value, 1000 * error))
    if "prdc" in metrics:
        add_prdc(scores, real, synthetic, seed, device)
    if "similarity" in metrics:
        add_pairs(scores, real, synthetic, seed)
    if "neighbours" in metrics and training is not None:
        add_neighbours(scores, real, synthetic, training, seed, device)
    return scores


def add_fid(
    scores: Scores, real: Features, synthetic: Features, seed: int, replicates: int, device: torch.device | str
) -> None:
    """Add the Frechet distance with its interval and deviations, if there are replicates, and notes on its bias."""
    found = estimate_fid(real, synthetic, seed, replicates, device)
    scores.deviations = found.deviations
    bounds = intervals.normal_ci(found.value, found.error, least=0.0) if len(found.deviations) else (None, None)
    scores.values["fd"] = Value(found.value, *bounds)
    scores.notes += bias_notes(real, min(len(real), len(synthetic)), seed, device)


def add_extrapolation(
    scores: Scores, real: Features, synthetic: Features, seed: int, device: torch.device | str
) -> None:
    """Add the Frechet distance extrapolated to infinitely many images, or a note that there are too few of them."""
    needed = EXTRAPOLATION_SAMPLES * real.width
    if min(len(real), len(synthetic)) < needed:
        scores.notes.append(f"The Fréchet distance is extrapolated to infinitely many images from {needed} on.")
        return
    rows = [part.sample(MAX_ROWS, seed).to(device) for part in (real, synthetic)]
    scores.extrapolation = extrapolate_fid(*rows, seed=seed)
    scores.values["fd_infinity"] = Value(scores.extrapolation.value)


class FidEstimate(NamedTuple):
    """A Frechet distance, its standard error, and its deviations over resamples of the sets, (replicates,).

    Deviations of two distances are over the same draws, where their sets have as many rows: in the difference of the
    distances, the deviation that both share cancels out.
    """

    value: float
    error: float
    deviations: np.ndarray


def estimate_fid(
    real: Features, synthetic: Features, seed: int = 0, replicates: int = 0, device: torch.device | str = "cpu"
) -> FidEstimate:
    """Return the Frechet distance of two sets, read part by part, with its error and deviations if there are replicates.

    Of more rows than columns they are by the derivative of the distance, since the bootstrap takes long, else by the bootstrap.
    """
    none = np.zeros(0)
    if max(len(real), len(synthetic)) <= real.width:
        rows = (real.take(range(len(real))).to(device), synthetic.take(range(len(synthetic))).to(device))
        value = compute_fid(*rows)
        deviations = intervals.bootstrap_deviations(compute_fid, *rows, replicates, seed) if replicates > 1 else none
        return FidEstimate(value, float(deviations.std(ddof=1)) if len(deviations) else 0.0, deviations)
    gaussians = [fit_gaussian(rows, device) for rows in (real, synthetic)]
    value = fid_of_gaussians(*gaussians)
    if replicates < 2 or min(len(real), len(synthetic)) <= real.width:
        return FidEstimate(value, 0.0, none)
    influences = []
    for features, own, other in zip((real, synthetic), gaussians, reversed(gaussians), strict=True):
        influence = fid_influence(own, other)
        influences.append(torch.cat([influence(rows).cpu() for rows in features]).numpy())
    error = sum(influence.var(ddof=1) / len(influence) for influence in influences) ** 0.5
    resamples = intervals.draw_resamples([len(influence) for influence in influences], replicates, seed)
    deviations = [
        sum(influence[rows].mean() for influence, rows in zip(influences, numbers, strict=True))
        for numbers in resamples
    ]
    return FidEstimate(value, float(error), np.array(deviations))


def bias_notes(real: Features, fewest: int, seed: int, device: torch.device | str) -> list[str]:
    """Return sentences on how far the number of images alone moves a Frechet distance."""
    notes = []
    if fewest <= real.width:
        notes.append(
            f"Fewer images ({fewest}) than the {real.width} numbers of a feature: the Fréchet distance is far too large, and "
            "only fit to compare sets of equal size."
        )
    if len(real) >= 4:
        rows = real.sample(HALVED_ROWS, seed).to(device)
        distance = split_half_fid(rows, seed)
        notes.append(
            f"Two random halves of the real images ({len(rows) // 2} each) have a Fréchet distance of {distance:.4g}, although "
            "they are of one kind: that much is bias at their number, which falls slowly as there are more."
        )
    return notes


def add_prdc(scores: Scores, real: Features, synthetic: Features, seed: int, device: torch.device | str) -> None:
    """Add precision, recall, density and coverage with their intervals, or a note that there are too few images."""
    rows_real, rows_synthetic = (features.sample(PRDC_ROWS, seed).to(device) for features in (real, synthetic))
    sampled = len(rows_real) < len(real) or len(rows_synthetic) < len(synthetic)
    rows_real = _without_copies(scores, rows_real)
    if min(len(rows_real), len(rows_synthetic)) <= PRDC_NEIGHBOURS:
        scores.notes.append(
            f"Precision, recall, density and coverage need more than {PRDC_NEIGHBOURS} images of each kind."
        )
        return
    if sampled:
        scores.notes.append(
            f"Precision, recall, density and coverage are taken from {PRDC_ROWS} random images of a set."
        )
    for name, values in compute_prdc(rows_real, rows_synthetic)._asdict().items():
        if name == "density":  # a mean of counts, where the others are shares
            counts = values.cpu().numpy()
            # where all are equal, such as all in no neighbourhood, their spread says nothing
            scores.values[name] = mean_value(counts, seed) if np.ptp(counts) else Value(float(counts[0]))
        else:
            share, hits = float(values.mean()), int(values.sum())
            scores.values[name] = Value(share, *intervals.wilson_ci(hits, len(values)))


def _without_copies(scores: Scores, real: torch.Tensor) -> torch.Tensor:
    """Return real features without those of images that are there twice, and note it.

    A copy is its own nearest neighbour: neighbourhoods shrink to nothing, and the kernel distance counts an image against itself.
    Copies among the samples stay: they are a fault of the model.
    """
    kept = distinct_rows(real)
    note = f"Kernel distance, precision, recall, density and coverage are taken of the {len(kept)} real images that differ."
    if 1 < len(kept) < len(real):
        if note not in scores.notes:
            scores.notes.append(note)
        return kept
    return real


def add_pairs(scores: Scores, real: Features, synthetic: Features, seed: int) -> None:
    """Add the similarity of pairs and what it is compared with, or a note that there are no pairs."""
    pairs = compare_pairs(real, synthetic, seed)
    if pairs is None:
        scores.notes.append("No pairs: fewer than two names are in both sets.")
        return
    scores.pairs = pairs
    unpaired = len(real) + len(synthetic) - 2 * len(pairs.rows)
    if unpaired:
        scores.notes.append(f"Images without a partner of their name: {unpaired}; they are in no pair.")
    scores.values["similarity"] = mean_value(pairs.similarity, seed)
    scores.values["random_similarity"] = mean_value(pairs.random, seed)
    scores.values["above_random"] = mean_value(pairs.above_random, seed)
    if np.isfinite(pairs.distance).all():
        scores.values["feature_distance"] = mean_value(pairs.distance, seed)
    else:  # their unit is the distance of two real images
        scores.notes.append("All real images are alike: feature distances of pairs have no unit, and are left out.")


def add_neighbours(
    scores: Scores,
    real: Features,
    synthetic: Features,
    training: Features,
    seed: int,
    device: torch.device | str,
) -> None:
    """Add the similarity of each row, synthetic and real, to its nearest training image."""
    scores.neighbours = find_nearest(synthetic, training, device)
    neighbours_of_real = find_nearest(real, training, device)
    for name, found in (("nearest_training", scores.neighbours), ("nearest_training_of_real", neighbours_of_real)):
        scores.values[name] = mean_value(found.similarity, seed)
    duplicates = int((neighbours_of_real.similarity > DUPLICATE_COSINE).sum())
    if duplicates:
        scores.notes.append(
            f"{duplicates} real images are among those of training, too: the nearest is the image itself."
        )
