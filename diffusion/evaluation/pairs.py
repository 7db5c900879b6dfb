"""Pairs of a real and a synthetic image, and the nearest training image of each synthetic one.

Letters: P pairs, Q rows that are looked up, D feature width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.evaluation.features import PART, Features, Row


class Pairs(NamedTuple):
    """Every row that both sets have. distance: between features, 1 where two random real images are as far apart."""

    rows: list[Row]
    similarity: np.ndarray  # (P,) cosine of a real row and the synthetic row of its name
    distance: np.ndarray  # (P,) Euclidean
    random: np.ndarray  # (P,) cosine of a real row and a synthetic row of another name

    @property
    def above_random(self) -> np.ndarray:
        """(P,) of how many random pairs, as a share, a pair is more similar: 0.5 in the mean, if conditions count for nothing."""
        ordered = np.sort(self.random)
        below = np.searchsorted(ordered, self.similarity, "left") + np.searchsorted(ordered, self.similarity, "right")
        return below / (2 * len(ordered))  # ties count half


def compare_pairs(real: Features, synthetic: Features, seed: int = 0) -> Pairs | None:
    """Compare rows of one name; None when fewer than two names are in both."""
    place = {row: i for i, row in enumerate(synthetic.rows)}
    common = [(row, i, place[row]) for i, row in enumerate(real.rows) if row in place]
    if len(common) < 2:
        return None
    rows, at_real, at_synthetic = map(list, zip(*common, strict=True))
    # a random cycle through all pairs: no row meets its own
    order = np.random.default_rng(seed).permutation(len(rows))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)
    own, random, distances, apart = [], [], [], []
    for first in range(0, len(rows), PART):
        part = slice(first, first + PART)
        a = real.take(at_real[part])
        strangers = np.asarray(at_synthetic)[other[part]], np.asarray(at_real)[other[part]]
        b, c, d = synthetic.take(at_synthetic[part]), synthetic.take(strangers[0]), real.take(strangers[1])
        own.append(F.cosine_similarity(a, b))
        random.append(F.cosine_similarity(a, c))
        distances.append((a - b).norm(dim=1))
        apart.append((a - d).norm(dim=1))
    scale = torch.cat(apart).double().mean().clamp(min=torch.finfo(torch.float64).tiny)
    relative = torch.cat(distances).double() / scale
    return Pairs(rows, torch.cat(own).double().numpy(), relative.numpy(), torch.cat(random).double().numpy())


class Nearest(NamedTuple):
    """Of each row that was looked up, the most similar row of another set."""

    similarity: np.ndarray  # (Q,) cosine
    number: np.ndarray  # (Q,) of the row there


def nearest(rows: Features, among: Features, device: torch.device | str = "cpu") -> Nearest:
    """Look up each row among those of another set by cosine; neither set is held whole."""
    similarity, number = [], []
    for part in rows:
        queries = F.normalize(part.to(device), dim=1)
        best = torch.full((len(queries),), -torch.inf, device=device)
        where = torch.zeros(len(queries), dtype=torch.int64, device=device)
        first = 0
        for others in among:
            if len(others):
                found = (queries @ F.normalize(others.to(device), dim=1).T).max(1)
                better = found.values > best
                best = torch.where(better, found.values, best)
                where = torch.where(better, found.indices + first, where)
            first += len(others)
        similarity.append(best.double().cpu())
        number.append(where.cpu())
    return Nearest(torch.cat(similarity).numpy(), torch.cat(number).numpy())
