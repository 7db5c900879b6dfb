"""The diffusers layout: names, config.json, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_pixart import build_small_pixart, same

from diffusion.model import PixArt
from diffusion.model.convert import load_weights, save_diffusers
from diffusion.model.diffusers_layout import diffusers_config, from_diffusers, read_diffusers_config, to_diffusers
from diffusion.model.matching import load_into
from diffusion.utils.errors import InputError

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture
def model() -> PixArt:
    return build_small_pixart()


def test_the_released_layout_is_written_as_it_is(tmp_path):
    weights = load_weights(REFERENCE / "r256_diffusers")
    model = PixArt(**weights.architecture)
    load_into(model, weights.state_dict, "r256_diffusers")
    save_diffusers(model, tmp_path / "folder")
    name = "diffusion_pytorch_model.safetensors"
    assert same(load_file(tmp_path / "folder" / name), load_file(REFERENCE / "r256_diffusers" / name))
    released = json.loads((REFERENCE / "r256_diffusers/config.json").read_text())
    del released["_diffusers_version"]
    assert diffusers_config(model.config) == released


@pytest.mark.parametrize(
    ("key", "value"),
    [("sample_size", None), ("sample_size", "8"), ("interpolation_scale", 0), ("num_attention_heads", None)],
)
def test_strange_configs(model, tmp_path, key, value):
    save_diffusers(model, tmp_path / "folder")
    file = tmp_path / "folder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(InputError, match="folder: (input_size|num_heads|pe_interpolation) .*expected"):
        load_weights(tmp_path / "folder")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not the config of a"):
        load_weights(tmp_path / "folder")


def test_queries_keys_and_values_are_one_tensor_in_official_names(model):
    tensors = to_diffusers(model.state_dict())
    fused = [tensors[f"transformer_blocks.1.attn1.to_{part}.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(fused), model.blocks[1].attn.qkv.weight)
    assert torch.equal(tensors["caption_projection.uncond_embedding"], model.null_condition)
    assert "pos_embed.pos_embed" not in tensors


def test_names_that_the_layout_does_not_have_are_refused_both_ways(model):
    tensors = to_diffusers(model.state_dict())
    with pytest.raises(
        InputError, match="'transformer_blocks.0.norm.weight' is no tensor of a PixCellTransformer2DModel"
    ):
        from_diffusers({**tensors, "transformer_blocks.0.norm.weight": torch.zeros(1)})
    del tensors["transformer_blocks.0.attn1.to_k.bias"]
    with pytest.raises(InputError, match="but no 'transformer_blocks.0.attn1.to_k.bias'"):
        from_diffusers(tensors)
    with pytest.raises(InputError, match="no place for blocks.0.attn.qkv.lora.weight"):
        to_diffusers({"blocks.0.attn.qkv.lora.weight": torch.zeros(1)})


def test_config_json_says_what_tensors_do_not_show(model, tmp_path):
    config = dataclasses.replace(model.config, use_cond_pos_embed=False)
    (tmp_path / "config.json").write_text(json.dumps(diffusers_config(config, "v_prediction")))
    assert read_diffusers_config(tmp_path / "config.json") == {
        **dict(input_size=64, num_heads=4, pe_interpolation=1.0),
        **dict(prediction_type="v_prediction", use_cond_pos_embed=False),
    }
