"""Folders and files of autoencoders: layouts that load to the same weights, and what must be refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from diffusion.encoders.latents import LatentCodec, LatentScale
from diffusion.encoders.vae_files import EMBEDDED_CODECS
from diffusion.formats import DIFFUSERS_WEIGHTS
from diffusion.utils.errors import InputError, MissingError


def write_config(folder: Path, **changes) -> None:
    config = {"latent_channels": 16, "block_out_channels": [8, 8, 8, 8], "scaling_factor": 1.0, "shift_factor": 0.0}
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    return LatentCodec.load("tiny")


def test_a_missing_codec_raises_with_the_embedded_names():
    with pytest.raises(MissingError, match="no latent codec at nowhere/vae.*tiny"):
        LatentCodec.load("nowhere/vae")


def test_a_folder_without_config_raises(tmp_path):
    with pytest.raises(MissingError, match="no config.json"):
        LatentCodec.load(tmp_path)


def test_a_folder_without_weights_raises(tmp_path):
    write_config(tmp_path)
    with pytest.raises(MissingError, match="safetensors"):
        LatentCodec.load(tmp_path)


def test_pickled_code_in_vae_weights_raises(tmp_path):
    write_config(tmp_path)
    torch.save({"encoder.conv_in.weight": Path("a")}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="refers to code, pathlib.*, and pickled code is never run here"):
        LatentCodec.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "model.safetensors", "shards"],
)
def test_prefixed_and_sharded_vae_weights_load_equal(codec, tmp_path, name):
    """Under any usual name, with a prefix and other networks beside: the same weights, to the bit."""
    from safetensors.torch import load_file, save_file

    folder = EMBEDDED_CODECS["tiny"]
    weights = {f"first_stage_model.{n}": t for n, t in load_file(folder / DIFFUSERS_WEIGHTS).items()}
    weights["model.diffusion_model.out.bias"] = torch.zeros(2)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    if name.endswith(".bin"):
        torch.save({"state_dict": weights}, tmp_path / name)
    elif name == "shards":
        shards = {key: f"diffusion_pytorch_model-0000{i % 2 + 1}-of-00002.safetensors" for i, key in enumerate(weights)}
        for file in set(shards.values()):
            save_file({key: weights[key] for key in weights if shards[key] == file}, tmp_path / file)
        (tmp_path / f"{DIFFUSERS_WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))
    else:
        save_file(weights, tmp_path / name)
    loaded = LatentCodec.load(tmp_path)
    own = loaded.vae.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in codec.vae.state_dict().items())
    assert loaded.fingerprint and loaded.fingerprint != codec.fingerprint


def test_names_of_compvis_and_of_earlier_diffusers_load_equal(tmp_path):
    """The autoencoder as a single file of CompVis' layout, attention with convolutions of one pixel, comes out the same."""
    from safetensors.torch import save_file

    config = {"latent_channels": 16, "block_out_channels": [8, 8, 8, 8], "scaling_factor": 1.0, "shift_factor": 0.0,
              "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 4, "layers_per_block": 1,
              "up_block_types": ["UpDecoderBlock2D"] * 4}  # fmt: skip
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = vae.state_dict()
    earlier = {"to_q": "query", "to_k": "key", "to_v": "value"}
    renamed = {}
    for name, tensor in weights.items():
        for new, old in (*earlier.items(), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / DIFFUSERS_WEIGHTS)
    loaded = LatentCodec.load(tmp_path).vae.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    released = {**compvis_names(weights), "loss.logvar": torch.zeros(1)}
    save_file({f"first_stage_model.{n}": t for n, t in released.items()}, tmp_path / DIFFUSERS_WEIGHTS)
    loaded = LatentCodec.load(tmp_path).vae.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    save_file({**released, "encoder.extra.weight": torch.zeros(1)}, tmp_path / DIFFUSERS_WEIGHTS)
    with pytest.raises(InputError, match=r"\(1 of its \d+ tensors have unknown names\)"):
        LatentCodec.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        ("<!doctype html>", "is an HTML page"),
        ("", "is empty"),
    ],
)
def test_placeholder_files_raise_with_what_they_are(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=f"config.json {message}"):
        LatentCodec.load(tmp_path)
    write_config(tmp_path)
    (tmp_path / DIFFUSERS_WEIGHTS).write_text(text)
    with pytest.raises(InputError, match=f"safetensors {message}"):
        LatentCodec.load(tmp_path)


def compvis_names(weights):
    """The names of the original latent diffusion code: levels counted from the top in the decoder, too."""
    renamed = {}
    for name, tensor in weights.items():
        name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{3 - int(match[1])}", name).replace("down_blocks", "down")
        for new, old in (
            (".resnets.", ".block."), ("mid_block.block.0", "mid.block_1"), ("mid_block.block.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"), ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
            ("mid_block.attentions.0.to_k", "mid.attn_1.k"), ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"), ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"), ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
        ):  # fmt: skip
            name = name.replace(new, old)
        renamed[name] = tensor[..., None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
    return renamed


def test_incomplete_vae_weights_raise(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = EMBEDDED_CODECS["tiny"]
    weights = load_file(folder / DIFFUSERS_WEIGHTS)
    del weights["decoder.conv_out.bias"]
    save_file(weights, tmp_path / DIFFUSERS_WEIGHTS, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match=r"1 weights such as decoder\.conv_out\.bias"):
        LatentCodec.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_channels": 4}, "latent_channels is 4, expected 16"),
        ({"block_out_channels": [8, 8, 8]}, "downsample by 4, expected 8"),
        ({"block_out_channels": 8}, "not the config"),
    ],
)
def test_other_latent_layouts_raise(tmp_path, change, message):
    write_config(tmp_path, **change)
    with pytest.raises(InputError, match=message):
        LatentCodec.load(tmp_path)


def test_a_broken_vae_config_raises(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not the config"):
        LatentScale.from_folder(tmp_path)


@pytest.mark.parametrize("scale", [float("nan"), 0, -1, None, "wide"])
def test_a_scaling_factor_that_is_not_positive_and_finite_raises(tmp_path, scale):
    write_config(tmp_path, scaling_factor=scale)
    with pytest.raises(InputError, match=r"config\.json"):
        LatentScale.from_folder(tmp_path)
