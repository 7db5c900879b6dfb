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


def test_controls_become_the_condition_of_the_batch():
    def item(number: float, control: bool = True) -> PatchItem:
        image = torch.full((16, 4, 4), number) if control else None
        return PatchItem(torch.zeros(16, 4, 4), torch.zeros(1, 8), f"{number}", control=image)

    condition = collate([item(1.0), item(2.0)]).condition
    assert condition.control.shape == (2, 16, 4, 4) and condition.control[:, 0, 0, 0].tolist() == [1, 2]
    assert condition.weight.tolist() == [1, 1]
    with pytest.raises(ValueError, match="1 of 2 items have a control"):
        collate([item(1.0), item(2.0, control=False)])
