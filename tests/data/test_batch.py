"""Batches of samples, of which some could not be read."""

from __future__ import annotations

import pytest
import torch

from diffusion.data.batch import BadItem, PatchItem, collate
from diffusion.utils.errors import InputError


def test_a_batch_has_the_readable_items_and_names_the_others():
    items = [PatchItem(torch.full((16, 4, 4), float(i)), torch.ones(1, 3) * i, f"{i}", seed=i) for i in range(3)]
    bad = BadItem("4", "no feature file")
    batch = collate([items[0], bad, *items[1:]])
    assert batch.latents[:, 0, 0, 0].tolist() == [0, 1, 2] and batch.latents.shape == (3, 16, 4, 4)
    assert (batch.names, batch.seeds, batch.bad) == (["0", "1", "2"], [0, 1, 2], [bad])


def test_a_batch_without_a_readable_item_is_refused():
    with pytest.raises(InputError, match="none of the 2 items of a batch can be read; the first: torn"):
        collate([BadItem("a", "torn"), BadItem("b", "missing")])
