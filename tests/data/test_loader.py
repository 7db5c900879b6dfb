"""Data loaders."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from diffusion.data.batch import collate
from diffusion.data.datasets.pan_cancer import PanCancerDataLowRes
from diffusion.data.loader import training_loader
from diffusion.data.sampler import BatchStream


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers(feature_root, workers):
    data = PanCancerDataLowRes(feature_root, 256)
    stream = BatchStream(len(data), 5, seed=2)
    loader = training_loader(data, collate, stream, workers, pin_memory=False)
    for batch, draws in zip(islice(loader, 3), stream, strict=False):
        expected = collate([data[draw] for draw in draws])
        assert torch.equal(batch.latents, expected.latents) and torch.equal(
            batch.condition.tokens, expected.condition.tokens
        )
        assert batch.names == expected.names and batch.to("cpu").latents.shape == (5, 16, 32, 32)
