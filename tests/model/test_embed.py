"""Embeddings of position, time and condition against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion.model.embed import ConditionEmbedder, TimestepEmbedder, sincos_2d

SMALL = dict(input_size=16, hidden_size=32, depth=2, num_heads=4, caption_channels=12, model_max_length=4)


def test_position_embedding_is_the_formula():
    rows, columns = torch.tensor([0.0, 1.5]), torch.tensor([0.0, 0.5, 2.0])
    grid = sincos_2d(8, rows, columns)
    frequencies = [1.0, 10000 ** (-1 / 2)]
    for i, row in enumerate(rows.tolist()):
        for j, column in enumerate(columns.tolist()):
            expected = [f(c * w) for c in (column, row) for f in (math.sin, math.cos) for w in frequencies]
            assert grid[3 * i + j].tolist() == pytest.approx(expected, abs=1e-6)


def test_timestep_features():
    embedder = TimestepEmbedder(4)
    embedder.mlp = torch.nn.Sequential(torch.nn.Linear(256, 256))
    torch.nn.init.eye_(embedder.mlp[0].weight)
    torch.nn.init.zeros_(embedder.mlp[0].bias)
    features = embedder(torch.tensor([7]))[0]
    assert features[1].item() == pytest.approx(math.cos(7 * 10000 ** (-1 / 128)), abs=1e-5)
    assert features[130].item() == pytest.approx(math.sin(7 * 10000 ** (-2 / 128)), abs=1e-5)


def test_condition_dropout_replaces_whole_samples_in_training_only():
    embedder = ConditionEmbedder(channels=6, width=4, dropout=0.25, tokens=3)
    y = torch.randn(4000, 3, 6)
    torch.manual_seed(0)
    dropped = (embedder.drop(y) == embedder.y_embedding).flatten(1)
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert dropped.all(1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(embedder.eval().drop(y), y)
    chosen = torch.arange(len(y)) % 3 == 0  # named, they are dropped whatever the mode
    assert torch.equal(embedder.drop(y, chosen), torch.where(chosen[:, None, None], embedder.y_embedding, y))
