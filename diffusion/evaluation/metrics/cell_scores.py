"""Scores of a synthetic set by what pathologists look at: nuclei, stains, and the masks that samples were made for.

Letters: N M windows of two sets, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from diffusion.evaluation.metrics.intervals import Value, draw_resamples, mean_value, percentile_value
from diffusion.evaluation.metrics.scores import Scores
from diffusion.evaluation.metrics.stains import angle_between
from diffusion.evaluation.sets.cells import COLUMNS, DENSITIES, STAINS, CellTable
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError

CELLS = "cells"  # what takes the place of an encoder in tables
RESAMPLES = 1000  # of windows, for intervals
FEWEST_PAIRS = 3  # of which a correlation is taken


@dataclass(frozen=True)
class Adherence:
    """How nuclei agree with masks, window by window: of samples, and of the real images that the masks were taken from, if known."""

    synthetic: CellTable
    real: CellTable | None = None


def score_cells(
    real: CellTable, synthetic: CellTable, mpp: float, adherence: Adherence | None = None, seed: int = 0
) -> Scores:
    """Score a synthetic set against a real one by their nuclei and stains, and by its masks, if there are some.

    mpp: microns per pixel. Windows of the same name are resampled together. Raises InputError for fewer than two windows on a side.
    """
    if min(len(real.rows), len(synthetic.rows)) < 2:
        raise InputError(
            f"got {len(real.rows)} real and {len(synthetic.rows)} synthetic images, expected at least 2 of each"
        )
    scores = Scores(CELLS, len(COLUMNS), {"real": len(real.rows), "synthetic": len(synthetic.rows)})
    add_nuclei(scores, real, synthetic, mpp, seed)
    if adherence is not None:
        add_adherence(scores, adherence, seed)
    return scores


def add_nuclei(scores: Scores, real: CellTable, synthetic: CellTable, mpp: float, seed: int) -> None:
    """Add how many nuclei there are, how large, how deeply stained and in which colours, compared with the real ones."""
    pairs = find_pairs(real, synthetic)
    resample = partial(_resampled, real=real, synthetic=synthetic, pairs=pairs, seed=seed)
    for name, column in (("nuclei_number", "nuclei"), ("nuclei_area", "area")):
        scores.values[name] = resample(lambda a, b, column=column: _ratio(_mean(b, column), _mean(a, column)))
    for name in DENSITIES:
        scores.values[f"{name}_difference"] = resample(lambda a, b, name=name: _mean(b, name) - _mean(a, name))
    for stain in STAINS:
        scores.values[f"{stain}_angle"] = resample(lambda a, b, stain=stain: _vector_angle(a, b, stain))
    scores.values = {name: value for name, value in scores.values.items() if np.isfinite(value.value)}
    if pairs is not None and len(pairs) >= FEWEST_PAIRS:
        counts = np.stack([real.column("nuclei")[pairs[:, 0]], synthetic.column("nuclei")[pairs[:, 1]]])
        if (counts.max(1) > counts.min(1)).all():
            drawn = [np.arange(len(pairs)), *(rows for (rows,) in draw_resamples([len(pairs)], RESAMPLES, seed))]
            with np.errstate(invalid="ignore"):  # of a resample whose counts are all one
                found = np.array([np.corrcoef(counts[:, rows])[0, 1] for rows in drawn])
            scores.values["nuclei_correlation"] = percentile_value(found)
    area = (WINDOW * mpp / 1000) ** 2  # square millimetres of a window
    told = [
        f"{table.column('nuclei').mean() / area:.0f} nuclei per square millimetre of {_mean(table.values, 'area'):.1f} square microns"
        for table in (real, synthetic)
    ]
    scores.notes.append(
        f"Real images have {told[0]} in the mean, synthetic ones {told[1]}, at {mpp:g} microns a pixel."
    )
    for kind, table in (("real", real), ("synthetic", synthetic)):
        if empty := int((table.column("nuclei") == 0).sum()):
            scores.notes.append(f"In {empty} of {len(table.rows)} {kind} images no nucleus was found.")


def add_adherence(scores: Scores, adherence: Adherence, seed: int) -> None:
    """Add how the nuclei of samples agree with their masks, beside other images' masks, and beside real tissue."""
    from diffusion.evaluation.sets.cells import ADHERENCE

    columns = dict(zip(ADHERENCE, adherence.synthetic.values.T, strict=True))
    for name in ("dice", "found", "aji", "pq"):
        scores.values[f"mask_{name}"] = mean_value(columns[name], seed)
    if np.isfinite(columns["dice_of_others"]).all():
        scores.values["mask_dice_of_others"] = mean_value(columns["dice_of_others"], seed)
        scores.values["mask_dice_above_others"] = mean_value(columns["dice"] - columns["dice_of_others"], seed)
    if adherence.real is not None and len(adherence.real.rows) > 1:
        scores.values["mask_dice_of_real"] = mean_value(adherence.real.values[:, ADHERENCE.index("dice")], seed)


def find_pairs(real: CellTable, synthetic: CellTable) -> np.ndarray | None:
    """Return the row numbers of windows that both sets have (P, 2); None where these are not all of both."""
    place = {row: i for i, row in enumerate(synthetic.rows)}
    pairs = np.array([(i, place[row]) for i, row in enumerate(real.rows) if row in place])
    return pairs if len(pairs) == len(real.rows) == len(synthetic.rows) else None


def _resampled(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    real: CellTable,
    synthetic: CellTable,
    pairs: np.ndarray | None,
    seed: int,
) -> Value:
    """Return a statistic of two tables with its percentile interval over resamples of their windows, of pairs where there are some."""
    values = [statistic(real.values, synthetic.values)]
    counts = [len(pairs)] if pairs is not None else [len(real.rows), len(synthetic.rows)]
    for drawn in draw_resamples(counts, RESAMPLES, seed):
        a, b = (pairs[drawn[0]].T) if pairs is not None else drawn
        values.append(statistic(real.values[a], synthetic.values[b]))
    return percentile_value(np.array(values))


def _mean(values: np.ndarray, column: str) -> float:
    """Return the mean of a column over those windows that have it; NaN where none has."""
    known = values[:, COLUMNS.index(column)]
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else np.nan


def _ratio(value: float, of: float) -> float:
    return value / of if of else np.nan


def _vector_angle(real: np.ndarray, synthetic: np.ndarray, stain: str) -> float:
    """Return the angle in degrees between the mean vectors of a stain in two sets."""
    first = COLUMNS.index(f"{stain}_red")
    vectors = [values[:, first : first + 3] for values in (real, synthetic)]
    vectors = [each[np.isfinite(each).all(1)] for each in vectors]
    return angle_between(*(each.mean(0) for each in vectors)) if all(map(len, vectors)) else np.nan
