"""Scores of a synthetic set by what pathologists look at: nuclei, stains, and the masks that samples were made for.

Letters: N M windows of two sets, P pairs of windows, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffusion.evaluation.metrics.intervals import (
    FEWEST_PAIRS,
    PAIR_RESAMPLES,
    Value,
    correlation_value,
    draw_images,
    mean_value,
    percentile_value,
)
from diffusion.evaluation.metrics.scores import Scores
from diffusion.evaluation.metrics.stains import angle_between
from diffusion.evaluation.sets.cells import CELLS, COLUMNS, DENSITIES, STAINS, CellTable
from diffusion.evaluation.sets.measuring import find_pairs, number_images
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError


def score_cells(real: CellTable, synthetic: CellTable, mpp: float, seed: int = 0) -> Scores:
    """Score a synthetic set against a real one by their nuclei and stains, and by masks, where tables have compared them.

    mpp: microns per pixel. Where all windows are pairs of one name, pairs are resampled. Raises InputError for fewer than two
    windows on a side.
    """
    if min(len(real.rows), len(synthetic.rows)) < 2:
        raise InputError(
            f"got {len(real.rows)} real and {len(synthetic.rows)} synthetic images, expected at least 2 of each"
        )
    scores = Scores(CELLS, len(COLUMNS), {"real": len(real.rows), "synthetic": len(synthetic.rows)})
    pairs = find_pairs(real, synthetic)
    add_nuclei(scores, real, synthetic, pairs, seed)
    add_stains(scores, real, synthetic, pairs, seed)
    add_adherence(scores, real, synthetic, seed)
    scores.notes += describe_nuclei(real, synthetic, mpp)
    return scores


def add_nuclei(scores: Scores, real: CellTable, synthetic: CellTable, pairs: np.ndarray, seed: int) -> None:
    """Add how many nuclei there are and how large, over those in real images, and how numbers go together in pairs (P, 2)."""
    resamples = _draw(real, synthetic, pairs, seed)
    for name, column in (("nuclei_number", "nuclei"), ("nuclei_area", "area")):
        value = _compare(
            real, synthetic, column, resamples, lambda real, synthetic: synthetic / real if real else np.nan
        )
        if value is not None:
            scores.values[name] = value
    if len(pairs) < FEWEST_PAIRS:
        return
    counts = (real.column("nuclei")[pairs[:, 0]], synthetic.column("nuclei")[pairs[:, 1]])
    correlation = correlation_value(*counts, seed, number_images(real)[pairs[:, 0]])
    if correlation is None:
        scores.notes.append("All images of a set have as many nuclei: there is no correlation of pairs.")
    else:
        scores.values["nuclei_correlation"] = correlation


def add_stains(scores: Scores, real: CellTable, synthetic: CellTable, pairs: np.ndarray, seed: int) -> None:
    """Add how much more deeply synthetic tissue is stained, and by how many degrees the colours of stains differ.

    Angles have no interval, since none is negative and chance alone makes some; a note has that of two halves of the real set.
    """
    resamples = _draw(real, synthetic, pairs, seed)
    for name in DENSITIES:
        value = _compare(real, synthetic, name, resamples, lambda real, synthetic: synthetic - real)
        if value is not None:
            scores.values[f"{name}_difference"] = value
    order = np.random.default_rng(seed).permutation(len(real.rows))
    halves = real.values[order[::2]], real.values[order[1::2]]
    by_chance = {}
    for stain in STAINS:
        angle = _vector_angle(real.values, synthetic.values, stain)
        if np.isfinite(angle):
            scores.values[f"{stain}_angle"] = Value(angle)
            by_chance[stain] = _vector_angle(*halves, stain)
    if by_chance:
        told = ", ".join(f"{stain} {angle:.2g}" for stain, angle in by_chance.items())
        scores.notes.append(f"The hues of two random halves of the real images are apart, too, by degrees: {told}.")


def add_adherence(scores: Scores, real: CellTable, synthetic: CellTable, seed: int) -> None:
    """Add how the nuclei of samples agree with their masks, beside other images' masks, and beside real tissue."""
    if not np.isfinite(synthetic.column("dice")).any():
        return
    images = number_images(synthetic)  # windows of one image are alike, and are resampled together
    for name in ("dice", "found", "aji", "pq"):
        scores.values[f"mask_{name}"] = mean_value(synthetic.column(name), seed, images)
    known = np.isfinite(synthetic.column("dice_of_others"))
    if known.sum() > 1:
        own, others = (synthetic.column(name)[known] for name in ("dice", "dice_of_others"))
        scores.values["mask_dice_of_others"] = mean_value(others, seed, images[known])
        scores.values["mask_dice_above_others"] = mean_value(own - others, seed, images[known])
    if not known.all():
        scores.notes.append(f"{int((~known).sum())} samples are compared with no other mask: all have the same.")
    tissue = real.column("dice")
    known = np.isfinite(tissue)
    if known.sum() > 1:
        scores.values["mask_dice_of_real"] = mean_value(tissue[known], seed, number_images(real)[known])


def describe_nuclei(real: CellTable, synthetic: CellTable, mpp: float) -> list[str]:
    """Return sentences on the nuclei of both sets as they are."""
    area, told = (WINDOW * mpp / 1000) ** 2, []  # square millimetres of a window
    for table in (real, synthetic):
        mean = _mean(table.column("area"))
        size = f" of {mean:.1f} square microns" if np.isfinite(mean) else ""
        told.append(f"{table.column('nuclei').mean() / area:.0f} nuclei per square millimetre{size}")
    notes = [f"Real images have {told[0]} in the mean, synthetic ones {told[1]}, at {mpp:g} microns a pixel."]
    for kind, table in (("real", real), ("synthetic", synthetic)):
        if empty := int((table.column("nuclei") == 0).sum()):
            notes.append(f"In {empty} of {len(table.rows)} {kind} images no nucleus was found.")
    return notes


Resamples = Sequence[tuple[np.ndarray, np.ndarray]]


def _draw(real: CellTable, synthetic: CellTable, pairs: np.ndarray, seed: int) -> Resamples:
    """Return row numbers of both tables: first all, then R resamples of images, of pairs where there is nothing else."""
    counts, images = [len(real.rows), len(synthetic.rows)], number_images(real)
    whole = [(np.arange(counts[0]), np.arange(counts[1]))]
    if [len(pairs)] * 2 == counts:
        return whole + [tuple(pairs[rows].T) for (rows,) in draw_images([images[pairs[:, 0]]], PAIR_RESAMPLES, seed)]
    sides = [images, number_images(synthetic)]
    return whole + [(rows[0], rows[1]) for rows in draw_images(sides, PAIR_RESAMPLES, seed)]


def _compare(
    real: CellTable,
    synthetic: CellTable,
    column: str,
    resamples: Resamples,
    statistic: Callable[[float, float], float],
) -> Value | None:
    """Return a statistic of the means of a column, with its percentile interval; None where a set has no such value."""
    first, second = real.column(column), synthetic.column(column)
    value = percentile_value(np.array([statistic(_mean(first[a]), _mean(second[b])) for a, b in resamples]))
    return value if np.isfinite(value.value) else None


def _mean(values: np.ndarray) -> float:
    """Return the mean of those values that are known; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan


def _vector_angle(real: np.ndarray, synthetic: np.ndarray, stain: str) -> float:
    """Return the angle in degrees between the mean vectors of a stain in two sets."""
    first = COLUMNS.index(f"{stain}_red")
    vectors = [values[:, first : first + 3] for values in (real, synthetic)]
    vectors = [each[np.isfinite(each).all(1)] for each in vectors]
    return angle_between(*(each.mean(0) for each in vectors)) if all(map(len, vectors)) else np.nan
