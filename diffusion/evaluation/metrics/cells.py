"""Scores of segmented nuclei: how two segmentations of one image agree, object by object and pixel by pixel.

Labels are whole numbers (H, W): 0 beside all objects, each object another number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MATCH = (
    0.5  # overlap over union above which two objects are one: at most one object matches then (Kirillov et al. 2019)
)


class Agreement(NamedTuple):
    """How a segmentation agrees with a reference.

    dice: of the pixels of all objects. found: share of the reference's objects of which at least half is covered. aji:
    aggregated Jaccard index (Kumar et al. 2017, section III). pq: panoptic quality (Kirillov et al. 2019), the product of dq, the
    F1 score of matched objects, and sq, the mean overlap over union of those. All 1 where both have no object.
    """

    dice: float
    found: float
    aji: float
    pq: float
    dq: float
    sq: float


class Overlaps(NamedTuple):
    """Areas of the objects of two segmentations, (n,) and (m,), and of their intersections, (n, m), in pixels."""

    reference: np.ndarray
    found: np.ndarray
    shared: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """Return the intersection over the union of every pair, (n, m)."""
        union = self.reference[:, None] + self.found[None] - self.shared
        return self.shared / np.maximum(union, 1)


def measure_overlaps(reference: np.ndarray, found: np.ndarray) -> Overlaps:
    """Count the pixels of every object and of every pair of objects. Raises ValueError for images of two sizes."""
    if reference.shape != found.shape:
        raise ValueError(f"segmentations of {reference.shape} and {found.shape} pixels: expected one image")
    first, second = (np.unique(np.append(labels, 0), return_inverse=True)[1][:-1] for labels in (reference, found))
    counts = np.zeros((first.max(initial=0) + 1, second.max(initial=0) + 1), np.int64)
    np.add.at(counts, (first, second), 1)
    return Overlaps(counts.sum(1)[1:], counts.sum(0)[1:], counts[1:, 1:])


def compare_segmentations(reference: np.ndarray, found: np.ndarray) -> Agreement:
    """Compare a segmentation (H, W) with a reference. Raises ValueError for images of two sizes."""
    overlaps = measure_overlaps(reference, found)
    area, other, shared, iou = *overlaps, overlaps.iou
    if not len(area) and not len(other):
        return Agreement(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    dice = 2 * shared.sum() / (area.sum() + other.sum())
    covered = (shared.sum(1) >= MATCH * area).mean() if len(area) else 1.0
    matched = iou[iou > MATCH]
    quality = 2 * len(matched) / (len(area) + len(other))
    overlap = float(matched.mean()) if len(matched) else 0.0
    return Agreement(float(dice), float(covered), aggregated_jaccard(overlaps), quality * overlap, quality, overlap)


def dice(reference: np.ndarray, found: np.ndarray) -> float:
    """Return the Dice overlap of two masks (H, W), of truth values: 1 where both are empty."""
    total = int(reference.sum()) + int(found.sum())
    return 2 * int((reference & found).sum()) / total if total else 1.0


def aggregated_jaccard(overlaps: Overlaps) -> float:
    """Compute the aggregated Jaccard index (Kumar et al. 2017).

    Each object of the reference is joined with the one that it overlaps most, by intersection over union; the sum of the
    intersections is divided by that of the unions, with the areas of all objects that are joined with none.
    """
    area, other, shared = overlaps
    if not len(area) or not len(other):
        return 0.0
    best = overlaps.iou.argmax(1)
    numbers = np.arange(len(area))
    touching = shared[numbers, best] > 0
    intersection = shared[numbers, best][touching].sum()
    union = (area + other[best] - shared[numbers, best])[touching].sum() + area[~touching].sum()
    unused = np.setdiff1d(np.arange(len(other)), best[touching])
    return float(intersection / (union + other[unused].sum()))
