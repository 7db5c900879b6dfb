"""Scores of virtual immunohistochemistry by what pathologists read from it: positive nuclei, where they are, and the call.

Windows of an image are alike, so that intervals are by resampling images. Letters: N windows of a set, P pairs of windows, n pairs
of images, C classes.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from diffusion.evaluation.metrics.classification import CallAgreement, agreement_of_calls, confusion_matrix
from diffusion.evaluation.metrics.intervals import (
    FEW_GROUPS,
    FEWEST_PAIRS,
    PAIR_RESAMPLES,
    correlation_value,
    draw_resamples,
    mean_value,
    percentile_value,
)
from diffusion.evaluation.metrics.scores import Scores
from diffusion.evaluation.sets.measuring import find_pairs, number_images
from diffusion.evaluation.sets.stain import COLUMNS, STAIN, StainTable
from diffusion.utils.errors import InputError


class Level(NamedTuple):
    """A class of calls: the share of positive nuclei from which it is called, with that share itself or only above it."""

    name: str
    share: float
    inclusive: bool


# of each marker, the classes above negative, the lowest first: the thresholds of Yellapragada et al. 2025 (arXiv 2506.05127), for
# ER those of Allison et al. 2020 (ASCO and CAP)
LEVELS = {
    "er": (Level("low", 0.01, True), Level("positive", 0.10, True)),
    "pr": (Level("positive", 0.01, False),),
    "ki67": (Level("inconclusive", 0.05, True), Level("positive", 0.30, False)),
}


def score_stain(real: StainTable, synthetic: StainTable, marker: str | None = None, seed: int = 0) -> Scores:
    """Score a synthetic set by its agreement with the real images of the same names.

    marker: of LEVELS, by which images are called; None: they are not. Values of windows have intervals over resamples of images, and
    none where all windows are of one image. Raises InputError for fewer than two pairs.
    """
    pairs = find_pairs(real, synthetic)
    if len(pairs) < 2:
        raise InputError(
            f"got {len(pairs)} pairs of images, expected at least 2: synthetic ones under the names of real ones"
        )
    scores = Scores(STAIN, len(COLUMNS), {"real": len(real.rows), "synthetic": len(synthetic.rows)})
    alone = (set(real.rows) - set(synthetic.rows), set(synthetic.rows) - set(real.rows))
    if unpaired := sum(len({row.name for row in rows}) for rows in alone):
        scores.notes.append(f"Images without a partner of their name: {unpaired}; their stain is not compared.")
    real, synthetic = real.take(pairs[:, 0]), synthetic.take(pairs[:, 1])
    images = number_images(real)
    if (count := int(images.max()) + 1) < len(pairs):
        scores.notes.append(describe_windows(len(pairs), count))
    add_positive_nuclei(scores, real, synthetic, seed)
    add_positive_area(scores, real, synthetic, seed)
    if marker is not None:
        add_calls(scores, real, synthetic, marker, seed)
    for name in ("psnr", "ssim"):
        values = synthetic.column(name)
        if len(known := values[np.isfinite(values)]) > 1:
            scores.values[f"stain_{name}"] = mean_value(known, seed, images[np.isfinite(values)])
    return scores


def add_positive_nuclei(scores: Scores, real: StainTable, synthetic: StainTable, seed: int) -> None:
    """Add the mean share of nuclei that are positive in each set of pairs (P), and how shares go together."""
    shares, images = np.stack([real.positive_share, synthetic.positive_share]), number_images(real)
    known = np.isfinite(shares).all(0)
    if empty := int((~known).sum()):
        pairs, one = _pairs(empty, images), "a window" if _has_windows(images) else "an image"
        scores.notes.append(f"{pairs} in which {one} has no nucleus: left out of the shares of positive nuclei.")
    shares, images = shares[:, known], images[known]
    if len(images) < 2:
        return
    for name, values in zip(("real", "synthetic"), shares, strict=True):
        scores.values[f"stain_nuclei_{name}"] = mean_value(values, seed, images)
    add_correlation(scores, "stain_nuclei_correlation", shares, "shares of positive nuclei", images, seed)


def add_positive_area(scores: Scores, real: StainTable, synthetic: StainTable, seed: int) -> None:
    """Add how positive areas of pairs (P) go together in size, and how they overlap, beside the overlap with other real images."""
    areas, images = np.stack([table.column("positive_area") for table in (real, synthetic)]), number_images(real)
    add_correlation(scores, "stain_area_correlation", areas, "positive areas", images, seed)
    own, others = (synthetic.column(name) for name in ("dice", "dice_of_others"))
    known = np.isfinite(own)
    if empty := int((~known).sum()):
        pairs, neither = _pairs(empty, images), f"neither {'window' if _has_windows(images) else 'image'}"
        scores.notes.append(f"{pairs} in which {neither} has a positive area: left out of the Dice.")
    if known.sum() > 1:
        scores.values["stain_dice"] = mean_value(own[known], seed, images[known])
    known &= np.isfinite(others)
    if known.sum() > 1:
        scores.values["stain_dice_of_others"] = mean_value(others[known], seed, images[known])
        scores.values["stain_dice_above_others"] = mean_value(own[known] - others[known], seed, images[known])


def add_correlation(scores: Scores, name: str, values: np.ndarray, about: str, images: np.ndarray, seed: int) -> None:
    """Add Pearson's correlation of pairs of values (2, P), of these numbers of images (P,), or a note why there is none."""
    if values.shape[1] < FEWEST_PAIRS:
        scores.notes.append(f"The correlation of {about} is taken from {_pairs(FEWEST_PAIRS, images)} on.")
    elif (value := correlation_value(values[0], values[1], seed, images)) is None:
        scores.notes.append(f"The {about} of a set are all equal: there is no correlation of pairs.")
    else:
        scores.values[name] = value


def add_calls(scores: Scores, real: StainTable, synthetic: StainTable, marker: str, seed: int) -> None:
    """Add how calls of synthetic images (n) agree with those of real ones, with percentiles over resamples of images."""
    classes = ["negative", *(level.name for level in LEVELS[marker])]
    shares = np.stack([shares_of_images(table) for table in (real, synthetic)])
    calls = call_shares(shares[:, np.isfinite(shares).all(0)], marker)
    if calls.shape[1] < 2:
        scores.notes.append(f"Nuclei are in both images of {_pairs(calls.shape[1])}: there is no agreement of calls.")
        return
    told = []
    for name, own in zip(("real", "synthetic"), calls, strict=True):
        counts = Counter(own.tolist())
        told.append(f"{name} " + ", ".join(f"{counts[i]} {each}" for i, each in enumerate(classes)))
    scores.notes.append(f"Calls of {marker}: {'; '.join(told)}.")
    count = calls.shape[1]
    drawn = [np.arange(count), *(rows for (rows,) in draw_resamples([count], PAIR_RESAMPLES, seed))]
    confusions = [confusion_matrix(calls[0, rows], calls[1, rows], len(classes)) for rows in drawn]
    found = np.array([agreement_of_calls(confusion) for confusion in confusions])
    for name, values in zip(CallAgreement._fields, found.T, strict=True):
        if np.isfinite(values[0]):
            scores.values[f"stain_call_{name}"] = percentile_value(values)
    if np.isnan(found[0]).any():
        only = classes[int(calls[0, 0])]
        scores.notes.append(f"All real images are {only}: kappas and Matthews' correlation of calls are not defined.")


def describe_windows(windows: int, images: int) -> str:
    """Return a sentence on what intervals were drawn from, and how far they can be trusted."""
    if images == 1:
        return f"All {windows} pairs of windows are of one image: their values have no intervals."
    few = "" if images >= FEW_GROUPS else f"; with fewer than {FEW_GROUPS} they are too narrow"
    return f"Intervals are from resamples of {images} pairs of images, each with all of its windows ({windows} in all){few}."


def shares_of_images(table: StainTable) -> np.ndarray:
    """Return the share of positive nuclei in each image (n,), all its windows together, in name order; NaN without a nucleus."""
    _, image = np.unique([row.name for row in table.rows], return_inverse=True)
    nuclei, positive = (np.bincount(image, table.column(name)) for name in ("nuclei", "positive_nuclei"))
    return np.divide(positive, nuclei, out=np.full(len(nuclei), np.nan), where=nuclei > 0)


def call_shares(shares: np.ndarray, marker: str) -> np.ndarray:
    """Return the classes of shares of positive nuclei, of the same shape: 0 for negative, then those of LEVELS."""
    levels = [shares >= level.share if level.inclusive else shares > level.share for level in LEVELS[marker]]
    return np.sum(levels, axis=0)


def _has_windows(images: np.ndarray) -> bool:
    """Tell whether an image has several windows. images: the numbers of the images of windows (P,)."""
    return len(np.unique(images)) < len(images)


def _pairs(count: int, images: np.ndarray | None = None) -> str:
    """Return a number of pairs in words. images: of the windows (P,) where these are counted; None: images are."""
    of = " of windows" if images is not None and _has_windows(images) else ""
    return f"{'1 pair' if count == 1 else f'{count} pairs'}{of}"
