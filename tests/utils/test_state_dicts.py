"""State dicts in checkpoints: found by their tensors, whatever lies around them."""

from __future__ import annotations

import pytest
import torch

from diffusion.utils.errors import InputError
from diffusion.utils.state_dicts import check_types, find_state_dict, is_state_dict

WEIGHTS = {"proj.weight": torch.ones(2), "proj.bias": torch.zeros(2)}


@pytest.mark.parametrize("content", [
    WEIGHTS,
    {"state_dict": WEIGHTS},
    {"a": {"b": WEIGHTS}, "step": 3},
    {f"model.{name}": tensor for name, tensor in WEIGHTS.items()},
    {f"module._orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
])  # fmt: skip
def test_tensors_are_found_under_keys_and_behind_prefixes(content):
    assert find_state_dict(content, "f", ("proj.weight",)).keys() == WEIGHTS.keys()


def test_averages_come_first_unless_raw_weights_are_wanted():
    average = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    content = {"model": WEIGHTS, "ema": average}
    assert torch.equal(find_state_dict(content, "f", ("proj.weight",))["proj.weight"], average["proj.weight"])
    assert torch.equal(find_state_dict(content, "f", ("proj.weight",), ema=False)["proj.weight"], torch.ones(2))


def test_a_file_without_a_state_dict_is_refused():
    with pytest.raises(InputError, match="f holds no state dict but the keys step"):
        find_state_dict({"step": 3}, "f", ("proj.weight",))
    assert is_state_dict(WEIGHTS) and not is_state_dict({}) and not is_state_dict({"step": 3})


def test_quantised_weights_and_weights_without_values_are_refused():
    check_types(WEIGHTS, WEIGHTS, "f")
    for tensor, message in ((torch.ones(2, dtype=torch.int8), "int8"), (torch.ones(2, device="meta"), "no values")):
        with pytest.raises(InputError, match=message):
            check_types(WEIGHTS, {"proj.weight": tensor}, "f")
