"""Weights in every format: what comes back is what went in, and what is refused says why."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_pixart import ARGUMENTS, build_small_pixart, same

from diffusion.model import PixArt
from diffusion.model.convert import load_weights, save_diffusers, save_official, save_safetensors
from diffusion.model.diffusers_layout import from_diffusers, to_diffusers
from diffusion.model.matching import check_metadata, load_into
from diffusion.model.pixart_config import PixArtConfig
from diffusion.utils.errors import InputError, MissingError

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture
def model() -> PixArt:
    return build_small_pixart()


@pytest.mark.parametrize(
    "wrap", [lambda s: {"state_dict": s}, lambda s: s, lambda s: {"ema": s, "model": {}, "step": 3}]
)
def test_torch_files(model, tmp_path, wrap):
    torch.save(wrap(model.state_dict()), tmp_path / "a.ckpt")
    assert same(load_weights(tmp_path / "a.ckpt").state_dict, model.state_dict())


def test_averaged_or_raw_is_a_choice(model, tmp_path):
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    torch.save({"ema": model.state_dict(), "model": other}, tmp_path / "a.ckpt")
    assert same(load_weights(tmp_path / "a.ckpt").state_dict, model.state_dict())
    assert same(load_weights(tmp_path / "a.ckpt", ema=False).state_dict, other)


def test_safetensors(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    assert same(load_weights(tmp_path / "a.safetensors").state_dict, model.state_dict())


def test_diffusers_round_trip_is_exact(model, tmp_path):
    assert same(
        from_diffusers(to_diffusers(model.state_dict())),
        {k: v for k, v in model.state_dict().items() if k != "pos_embed"},
    )
    save_diffusers(model, tmp_path / "folder")
    weights = load_weights(tmp_path / "folder")
    assert same(weights.state_dict, model.state_dict())
    assert PixArtConfig(**weights.architecture) == model.config
    with pytest.raises(InputError, match="already there"):
        save_diffusers(model, tmp_path / "folder")


class Wrapped(torch.nn.Module):
    """A layer in another, as adapters have it: its tensors get longer names."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base, self.gain = base, torch.nn.Parameter(torch.ones(base.out_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.base(x)


def test_a_network_with_a_wrapped_layer_is_saved_with_its_config(model, tmp_path):
    model.blocks[0].mlp.fc1 = Wrapped(model.blocks[0].mlp.fc1)
    save_official(model, tmp_path / "a.ckpt")
    save_safetensors(model, tmp_path / "a.safetensors")
    for name in ("a.ckpt", "a.safetensors"):
        weights = load_weights(tmp_path / name)
        assert PixArtConfig(**weights.architecture) == model.config and same(weights.state_dict, model.state_dict())
        again = PixArt(**weights.architecture)
        with pytest.raises(InputError, match="missing: blocks.0.mlp.fc1.bias.*unknown: blocks.0.mlp.fc1.base.bias"):
            load_into(again, weights.state_dict, tmp_path / name)
        again.blocks[0].mlp.fc1 = Wrapped(again.blocks[0].mlp.fc1)
        load_into(again, weights.state_dict, tmp_path / name)
        check_metadata(weights.metadata, again, "epsilon", tmp_path / name)
    with pytest.raises(InputError, match="no place for blocks.0.mlp.fc1.gain"):
        save_diffusers(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_stored_config_is_taken_without_a_look_at_the_tensors(tmp_path):
    """Heads, the ratio of the MLP and dropout leave no trace in them; how attention is computed is the reader's choice."""
    model = PixArt(**{**ARGUMENTS, "mlp_ratio": 2.7, "num_heads": 3, "class_dropout_prob": 0.0, "fp32_attention": True})
    save_official(model, tmp_path / "a.ckpt")
    read = PixArtConfig(**load_weights(tmp_path / "a.ckpt").architecture)
    assert read == dataclasses.replace(model.config, fp32_attention=False)


@pytest.mark.parametrize("lacking", [{"class_dropout_prob", "fp32_attention"}, {"depth", "mlp_ratio", "input_size"}])
def test_stored_arguments_of_older_versions(model, tmp_path, lacking):
    stored = {name: value for name, value in model.config.to_dict().items() if name not in lacking}
    torch.save({"state_dict": model.state_dict(), "architecture": stored}, tmp_path / "a.ckpt")
    weights = load_weights(tmp_path / "a.ckpt")
    assert PixArtConfig(**weights.architecture) == model.config
    check_metadata(weights.metadata, model, "epsilon", tmp_path / "a.ckpt")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": Malicious(tmp_path / "trap")}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="code is never run here"):
        load_weights(tmp_path / "a.ckpt")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_damaged_and_foreign_files(model, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(MissingError, match="no weights at"):
        load_weights(path)
    save = {".ckpt": torch.save, ".safetensors": save_file}[suffix]
    save({"conv.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="holds no PixArt network"):
        load_weights(path)
    save(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="not a whole"):
        load_weights(path)


def test_foreign_folders(model, tmp_path):
    save_diffusers(model, tmp_path / "folder")
    assert same(load_weights(tmp_path / "folder/diffusion_pytorch_model.safetensors").state_dict, model.state_dict())
    for text, message in (
        ("{", "is not the config"),
        ('{"_class_name": "AutoencoderKL"}', "config of a AutoencoderKL"),
    ):
        (tmp_path / "folder/config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_weights(tmp_path / "folder")
    (tmp_path / "text.ckpt").write_text("no weights at all")
    with pytest.raises(InputError, match="is not a whole torch file"):
        load_weights(tmp_path / "text.ckpt")


def test_an_empty_folder(tmp_path):
    with pytest.raises(MissingError, match="looked for config.json"):
        load_weights(tmp_path)


def test_a_whole_pipeline_s_folder(model, tmp_path):
    save_diffusers(model, tmp_path / "pipe" / "transformer")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    assert same(load_weights(tmp_path / "pipe").state_dict, model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(architecture={"hidden_size": "48"}), "a.ckpt: hidden_size is '48': expected int"),
        (dict(architecture={"num_heads": 0}), "a.ckpt: num_heads 0: expected at least 1"),
        (dict(architecture={"heads": 4}), "a.ckpt: heads: PixArt has no such argument; the nearest is 'num_heads'"),
        (
            dict(architecture={"pe_interpolation": float("nan")}),
            "pe_interpolation nan: expected a number that is finite",
        ),
        (dict(tensor=("x_embedder.proj.weight", torch.zeros(4, 4))), "other names or shapes"),
        (dict(tensor=("y_embedder.y_embedding", torch.zeros(1, 2, 3))), "other names or shapes"),
        (dict(tensor=("blocks.x.y", torch.zeros(1))), "other names or shapes"),
        (dict(tensor=("pos_embed", torch.zeros(5))), "other names or shapes"),
        (dict(tensor=("pos_embed", torch.zeros(1, 1024, 48))), "other names or shapes"),
    ],
)
def test_strange_checkpoints(model, tmp_path, change, message):
    name, tensor = change.get("tensor", ("final_layer.linear.bias", model.final_layer.linear.bias.detach()))
    content = {"state_dict": {**model.state_dict(), name: tensor}, "architecture": change.get("architecture", {})}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "a.ckpt")
