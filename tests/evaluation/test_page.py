"""The parts of the report's page: which pairs are shown, and the picture of pairs."""

from __future__ import annotations

import numpy as np
from scoring_data import (
    plain,
)

from diffusion.evaluation.metrics.pairs import Pairs
from diffusion.evaluation.reports import page
from diffusion.evaluation.sets.features import Row


def test_best_median_and_worst_pairs_are_chosen():
    similarity = np.linspace(0, 1, 101)
    shown = page.choose_ranked(similarity, each=3)
    assert shown == [("best", 100), ("best", 99), ("best", 98), ("median", 51), ("median", 50), ("median", 49),
                     ("worst", 2), ("worst", 1), ("worst", 0)]  # fmt: skip
    few = page.choose_ranked(np.array([0.1, 0.3, 0.2]), each=3)
    assert [number for _, number in few] == [1, 2, 0]  # none twice


def test_pairs_are_drawn_by_seed():
    rows = [Row(str(i)) for i in range(40)]
    pairs = Pairs(rows, *np.zeros((3, 40)))
    chosen = page.draw_pairs(pairs, seed=1)
    assert len(set(chosen)) == 16 and chosen == page.draw_pairs(pairs, seed=1) != page.draw_pairs(pairs, seed=2)


def test_grid_has_real_rows_above_synthetic_rows():
    grid = np.asarray(
        page.pairs_grid([plain((10 + i, 0, 0)) for i in range(10)], [plain((0, 0, 10 + i)) for i in range(10)])
    )
    found = list(dict.fromkeys(map(tuple, grid.reshape(-1, 3).tolist())))  # colours as first met, row by row
    of_images = [colour for colour in found if colour[1] == 0 and max(colour) in range(10, 20)]
    first, second = range(10, 18), range(18, 20)
    expected = (
        [(r, 0, 0) for r in first]
        + [(0, 0, b) for b in first]
        + [(r, 0, 0) for r in second]
        + [(0, 0, b) for b in second]
    )
    assert of_images == expected
