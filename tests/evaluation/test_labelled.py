"""Embeddings with the classes and slides of their images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.labelled import LabelledEmbeddings
from diffusion.utils.errors import InputError


def test_rows_have_class_and_slide():
    names = ["a/s/1", "a/s/2", "a/3", "b/s/1", "b/x/y/1"]
    rows = [Row(name, window) for name in names for window in range(2)]
    values = np.arange(10, dtype=np.float32)[:, None]
    features = Features(rows, 1, [lambda: values], [10], "stub")
    found = LabelledEmbeddings.from_features(features, ["a", "b"])
    assert found.labels.tolist() == [0] * 6 + [1] * 4
    assert found.groups.tolist() == ["s/"] * 4 + ["a/3"] * 2 + ["s/"] * 2 + ["x/y/"] * 2
    drawn = [
        LabelledEmbeddings.from_features(features, ["a", "b"], count, seed=5).features[:, 0].tolist()
        for count in (1, 2, 3)
    ]
    assert [len(each) for each in drawn] == [4, 8, 10] and set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    assert len({str(LabelledEmbeddings.from_features(features, ["a", "b"], 1, seed).features) for seed in range(9)}) > 1
    bad = Features(rows[:6], 1, [lambda: values[:6]], [6], "stub", {"b/s/1": "cannot be read"})
    with pytest.raises(InputError, match="no image of class b"):
        LabelledEmbeddings.from_features(bad, ["a", "b"])


def test_rows_of_several_parts_keep_their_order():
    values = torch.arange(6, dtype=torch.float32)[:, None]
    rows = [Row(f"{'ab'[i % 2]}/{i}") for i in range(6)]
    features = Features(rows, 1, [lambda: values[:4].numpy(), lambda: values[4:].numpy()], [4, 2], "stub")
    found = LabelledEmbeddings.from_features(features, ["a", "b"])
    assert found.features[:, 0].tolist() == [0, 1, 2, 3, 4, 5] and found.labels.tolist() == [0, 1] * 3
