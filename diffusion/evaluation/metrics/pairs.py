"""Pairs of a real and a synthetic image, and the nearest training image of each synthetic one.

Letters: P pairs, Q rows that are looked up, D feature width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.evaluation.sets.features import PART_ROWS, Features, Row

QUERY_ROWS = 32_768  # rows that are looked up at once: the other set is read once for each so many
ROUNDING = 1e-6  # of a distance in float32, as a share of the features
RANDOM_PAIRS = 10_000  # put together at random: enough to know their spread by


class Pairs(NamedTuple):
    """The rows that both sets have. distance: between features, in units of the mean distance of two random real images; NaN where
    these are all alike."""

    rows: list[Row]
    similarity: np.ndarray  # (P,) cosine of a real row and the synthetic row of its name
    distance: np.ndarray  # (P,) Euclidean
    random: np.ndarray  # (P,) or fewer: cosines of a real row and a synthetic row of another name

    @property
    def above_random(self) -> np.ndarray:
        """Return the share of random pairs that each pair is more similar than, (P,): 0.5 in the mean, if conditions have no effect."""
        ordered = np.sort(self.random)
        below = np.searchsorted(ordered, self.similarity, "left") + np.searchsorted(ordered, self.similarity, "right")
        return below / (2 * len(ordered))  # ties count half


def compare_pairs(real: Features, synthetic: Features, seed: int = 0) -> Pairs | None:
    """Compare rows of the same name; return None when fewer than two names are in both sets."""
    place = {row: i for i, row in enumerate(synthetic.rows)}
    common = [(row, i, place[row]) for i, row in enumerate(real.rows) if row in place]
    if len(common) < 2:
        return None
    rows, at_real, at_synthetic = map(list, zip(*common, strict=True))
    similarities, distances = [], []
    for first in range(0, len(rows), PART_ROWS):
        part = slice(first, first + PART_ROWS)
        a, b = real.take(at_real[part]), synthetic.take(at_synthetic[part])
        similarities.append(F.cosine_similarity(a, b))
        distances.append((a - b).norm(dim=1))
    random, unit = _random_pairs(real, synthetic, np.array(at_real), np.array(at_synthetic), seed)
    apart = _to_numpy(distances)
    return Pairs(rows, _to_numpy(similarities), apart / unit if unit else np.full_like(apart, np.nan), random)


def _random_pairs(
    real: Features, synthetic: Features, at_real: np.ndarray, at_synthetic: np.ndarray, seed: int
) -> tuple[np.ndarray, float]:
    """Return cosines of real rows and synthetic rows of other names, and the mean distance of two real rows: 0 of rows that are all alike.

    Pairs are put in a random order, and each real row is compared with the synthetic row before it: none meets its own.
    """
    order = np.random.default_rng(seed).permutation(len(at_real))[:RANDOM_PAIRS]
    a, b = real.take(at_real[order]), synthetic.take(at_synthetic[order])
    distance = (a - a.roll(1, 0)).norm(dim=1).double().mean()
    alike = distance < ROUNDING * a.norm(dim=1).double().mean()
    return _to_numpy([F.cosine_similarity(a, b.roll(1, 0))]), 0.0 if alike else float(distance)


def _to_numpy(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat(parts).double().numpy()


class NearestNeighbours(NamedTuple):
    """For each row that was looked up, the most similar row of another set."""

    similarity: np.ndarray  # (Q,) cosine
    number: np.ndarray  # (Q,) of the row there


def find_nearest(rows: Features, among: Features, device: torch.device | str = "cpu") -> NearestNeighbours:
    """Look up each row among those of another set by cosine, part by part: neither set is in memory as a whole."""
    similarity, number = [], []
    for start in range(0, len(rows), QUERY_ROWS):
        queries = F.normalize(rows.take(range(start, min(start + QUERY_ROWS, len(rows)))).to(device), dim=1)
        best = torch.full((len(queries),), -torch.inf, device=device)
        where = torch.zeros(len(queries), dtype=torch.int64, device=device)
        first = 0
        for part in among:
            if len(part):
                found = (queries @ F.normalize(part.to(device), dim=1).T).max(1)
                better = found.values > best
                best = torch.where(better, found.values, best)
                where = torch.where(better, found.indices + first, where)
            first += len(part)
        similarity.append(best.double().cpu())
        number.append(where.cpu())
    return NearestNeighbours(torch.cat(similarity).numpy(), torch.cat(number).numpy())
