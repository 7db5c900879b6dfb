"""Pairs of one name, random pairs, and nearest neighbours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from diffusion.evaluation.metrics import pairs as pairs_module
from diffusion.evaluation.metrics.pairs import compare_pairs, find_nearest
from diffusion.evaluation.sets.features import Features, Row


def named(values: torch.Tensor, names: list[str]) -> Features:
    return dataclasses.replace(Features.from_tensor(values), rows=[Row(name) for name in names])


def test_pairs_are_those_of_one_name():
    real = torch.eye(4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    synthetic = torch.stack([real[3], real[1] + real[0], real[2], torch.ones(4)])
    pairs = compare_pairs(named(real, ["a", "b", "c", "d"]), named(synthetic, ["d", "b", "c", "x"]))
    assert [row.name for row in pairs.rows] == ["b", "c", "d"]
    assert pairs.similarity == pytest.approx([2 / 5**0.5, 1, 1])
    # random pairs are a cycle: b meets c or d, which have nothing of it; c and d meet b but for its share of a
    assert pairs.random == pytest.approx([0, 0, 0])
    assert (pairs.above_random == 1).all()
    apart = np.mean([np.hypot(2, 3), np.hypot(3, 4), np.hypot(2, 4)])  # every two real rows once
    assert pairs.distance == pytest.approx(np.array([1, 0, 0]) / apart)
    assert compare_pairs(named(real, list("abcd")), named(real, list("axyz"))) is None


def test_random_pairs_are_of_different_names():
    rows = torch.eye(50)
    for seed in range(5):
        pairs = compare_pairs(Features.from_tensor(rows), Features.from_tensor(rows), seed)
        assert pairs.random.max() == 0 and pairs.similarity.min() == pytest.approx(1)
    unrelated = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    pairs = compare_pairs(Features.from_tensor(unrelated), Features.from_tensor(unrelated.flip(0)))
    assert pairs.above_random.mean() == pytest.approx(0.5, abs=0.05)


def test_nearest_has_the_largest_cosine(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    queries, others = torch.randn(23, 6, generator=generator), torch.randn(31, 6, generator=generator)
    arrays = [part.numpy() for part in others.split(9)]
    in_parts = dataclasses.replace(
        Features.from_tensor(others), parts=[lambda a=a: a for a in arrays], lengths=[len(a) for a in arrays]
    )
    found = find_nearest(Features.from_tensor(queries), in_parts)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], others[None], dim=2)
    assert found.number.tolist() == cosines.argmax(1).tolist()
    monkeypatch.setattr(pairs_module, "QUERY_ROWS", 10)
    assert find_nearest(Features.from_tensor(queries), in_parts).number.tolist() == found.number.tolist()
    assert found.similarity == pytest.approx(cosines.max(1).values.numpy(), rel=1e-5)
