"""Adapters: equal to W + scale * B A, merged or not, read and written as peft and diffusers do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_pixart import ARGUMENTS, build_small_pixart

from diffusion.model.lora import (
    LORA_FILE,
    TARGETS,
    LoraSettings,
    add_lora,
    load_lora,
    lora_tensors,
    merge_lora,
    save_lora,
    set_lora_scales,
    unmerge_lora,
)
from diffusion.model.lora_linear import LoraLinear
from diffusion.model.pixart import PixArt
from diffusion.utils.errors import InputError, MissingError


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 16, 64, 64, generator=generator)
    tokens = torch.randn(2, ARGUMENTS["model_max_length"], ARGUMENTS["caption_channels"], generator=generator)
    return x, torch.tensor([100, 700]), tokens


def build(seed: int = 1) -> PixArt:
    network, generator = build_small_pixart(), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def adapted(
    network: PixArt, targets: tuple[str, ...] = TARGETS, rank: int = 3, alpha: float = 6.0, name: str = "a"
) -> PixArt:
    """Add an adapter whose maps are all random."""
    add_lora(network, LoraSettings.of(rank, alpha, targets), name)
    generator = torch.Generator().manual_seed(len(name))
    for tensor in lora_tensors(network, name).values():
        tensor.data.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return network


@torch.no_grad()
def test_it_is_the_product_of_both_maps_added_to_the_weight():
    """Each of the maps that we keep in one tensor has its own adapter, of its own rows."""
    network = adapted(build())
    tensors = lora_tensors(network)
    assert len(tensors) == 2 * len(TARGETS) * network.config.depth
    expected, width = build(), network.config.hidden_size
    for number, block in enumerate(expected.blocks):

        def product(target, number=number):
            name = f"transformer_blocks.{number}.{target}.lora_"
            return 2.0 * tensors[f"{name}B.weight"] @ tensors[f"{name}A.weight"]

        for place, target in enumerate(("attn1.to_q", "attn1.to_k", "attn1.to_v")):
            block.attn.qkv.weight[place * width : (place + 1) * width] += product(target)
        for place, target in enumerate(("attn2.to_k", "attn2.to_v")):
            block.cross_attn.kv_linear.weight[place * width : (place + 1) * width] += product(target)
        for linear, target in (
            (block.attn.proj, "attn1.to_out.0"), (block.cross_attn.q_linear, "attn2.to_q"),
            (block.cross_attn.proj, "attn2.to_out.0"), (block.mlp.fc1, "ff.net.0.proj"), (block.mlp.fc2, "ff.net.2"),
        ):  # fmt: skip
            linear.weight += product(target)
    torch.testing.assert_close(network(*inputs()), expected(*inputs()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_new_one_and_scale_0_change_no_bit_and_merging_changes_little():
    plain, network = build()(*inputs()), build()
    add_lora(network, LoraSettings.of(4))
    assert torch.equal(network(*inputs()), plain), "B begins at zero"
    network = adapted(build())
    whole = network(*inputs())
    assert not torch.allclose(whole, plain, atol=1e-2)
    merge_lora(network)
    relative = (network(*inputs()) - whole).norm() / whole.norm()
    assert 0 < relative < 1e-6
    set_lora_scales(network, {"a": 0.0})
    assert torch.equal(network(*inputs()), plain), "merged, at scale 0"
    set_lora_scales(network, {"a": 1.0})
    unmerge_lora(network)
    assert torch.equal(network(*inputs()), whole)
    set_lora_scales(network, {"a": 0.0})
    assert torch.equal(network(*inputs()), plain)


@torch.no_grad()
def test_several_add_up_and_are_switched_without_reading_them_again():
    one, other = adapted(build(), name="a")(*inputs()), adapted(build(), name="second")(*inputs())
    both = adapted(adapted(build(), name="a"), ("mlp",), name="b")
    set_lora_scales(both, {"b": 0.0})
    assert torch.equal(both(*inputs()), one)
    both = adapted(adapted(build(), name="a"), name="second")
    set_lora_scales(both, {"a": 0.0})
    assert torch.equal(both(*inputs()), other)
    with pytest.raises(InputError, match="no adapter 'c'; there are a, second"):
        set_lora_scales(both, {"c": 1.0})


@torch.no_grad()
def test_files_of_diffusers_peft_and_whole_networks(tmp_path):
    network = adapted(build(), ("cross_attention",))
    expected = network(*inputs())
    save_lora(network, tmp_path / "adapter")
    again = build()
    assert load_lora(again, tmp_path / "adapter") == "adapter"
    assert torch.equal(again(*inputs()), expected)
    save_lora(again, tmp_path / "again")
    first, second = (load_file(tmp_path / name / LORA_FILE) for name in ("adapter", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (tmp_path / "adapter" / LORA_FILE).stat().st_size < 0.1 * 4 * sum(p.numel() for p in build().parameters())
    # peft: other names of file and tensors, and the settings beside them
    peft = tmp_path / "peft"
    (tmp_path / "again").rename(peft)
    (peft / LORA_FILE).unlink()
    stored = load_file(peft / "adapter_model.safetensors")
    assert {name.removeprefix("base_model.model.") for name in stored} == first.keys()
    assert json.loads((peft / "adapter_config.json").read_text())["lora_alpha"] == 6
    # a whole network, as released: nothing says its alpha, which is the rank
    whole = {name.replace(".weight", ".default.weight"): tensor for name, tensor in first.items()}
    whole |= {"transformer_blocks.0.attn2.to_q.base_layer.weight": torch.zeros(48, 48)}
    torch.save(whole, tmp_path / "whole.pth")
    for source, alpha in ((peft, None), (tmp_path / "whole.pth", 6.0)):
        other = build()
        load_lora(other, source, alpha=alpha)
        assert torch.equal(other(*inputs()), expected), source


def test_what_is_not_of_the_network_is_named(tmp_path):
    save_lora(adapted(build()), tmp_path / "adapter")
    narrow = PixArt(**{**ARGUMENTS, "hidden_size": 32})
    with pytest.raises(
        InputError, match=r"of another network: transformer_blocks\.0\.attn1\.to_k\.lora_A\.weight is \(3, 48\)"
    ):
        load_lora(narrow, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"it has transformer_blocks\.1\..*, and the network 1 blocks"):
        load_lora(PixArt(**{**ARGUMENTS, "depth": 1}), tmp_path / "adapter")
    with pytest.raises(MissingError, match="no adapter at"):
        load_lora(narrow, tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="holds no adapter: expected tensors such as"):
        load_lora(narrow, tmp_path / "other.safetensors")
    tensors = load_file(tmp_path / "adapter" / LORA_FILE)
    del tensors["transformer_blocks.0.ff.net.2.lora_B.weight"]
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match=r"has lora_A of transformer_blocks\.0\.ff\.net\.2, and no lora_B"):
        load_lora(build(), tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="lora target 'attn3': expected cross_attention, self_attention, mlp"):
        LoraSettings.of(4, None, ("attn3",))
    with pytest.raises(InputError, match="is already there; name a new folder"):
        save_lora(adapted(build()), Path(tmp_path / "adapter"))
    assert not any(isinstance(module, LoraLinear) for module in narrow.modules()), (
        "nothing was added before it was refused"
    )
    merged = adapted(build())
    merge_lora(merged)
    with pytest.raises(InputError, match="adapters are merged; unmerge_lora before another is added"):
        add_lora(merged, LoraSettings.of(2), "b")
