"""From one format of weights to another."""

from __future__ import annotations

import pytest
from small_pixart import build_small_pixart, same

from diffusion.model.convert import load_weights, save_official
from diffusion.model.reformat import WRITERS, check_target, convert_weights
from diffusion.utils.errors import InputError


@pytest.mark.parametrize("kind", WRITERS)
def test_every_tensor_keeps_its_bits_and_its_type(tmp_path, kind):
    save_official(build_small_pixart().half(), tmp_path / "a.ckpt")
    target = tmp_path / {"official": "b.ckpt", "safetensors": "b.safetensors", "diffusers": "b"}[kind]
    count, architecture = convert_weights(tmp_path / "a.ckpt", target, kind)
    before, after = (load_weights(path).state_dict for path in (tmp_path / "a.ckpt", target))
    assert same(before, after) and count == sum(tensor.numel() for tensor in before.values())
    assert {name: each.dtype for name, each in before.items()} == {name: each.dtype for name, each in after.items()}
    assert architecture["hidden_size"] == 48 and architecture["num_heads"] == 4
    with pytest.raises(InputError, match="says that it has 4 heads, not 2"):
        convert_weights(tmp_path / "a.ckpt", tmp_path / "c", "diffusers", num_heads=2)


def test_a_name_of_another_format_is_refused(tmp_path):
    for name, kind in (("a.safetensors", "official"), ("a", "safetensors"), ("a.ckpt", "diffusers")):
        with pytest.raises(InputError, match=f"--to {kind} writes a"):
            check_target(tmp_path / name, kind)
    check_target(tmp_path / "pixcell-256", "diffusers")
