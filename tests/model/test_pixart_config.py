"""The arguments of the network: what they derive, accept and refuse."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diffusion.model import PixArt, PixArtConfig, build_model
from diffusion.model.pixart_config import PRESETS, check_arguments
from diffusion.utils.errors import InputError

SMALL = dict(input_size=16, hidden_size=32, depth=1, num_heads=4, caption_channels=12)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    config = PixArtConfig(**PRESETS[preset])
    assert (config.patch_size, config.base_size, config.out_channels) == (2, 16, 32)
    assert config.mlp_width == 4 * config.hidden_size


def test_a_network_keeps_the_config_that_builds_it_again():
    for model in (PixArt(**SMALL), PixArt(PixArtConfig(**SMALL)), build_model("PixArt_Ti_2_UNI", **SMALL)):
        assert model.config == PixArtConfig(**SMALL)
    assert PixArt(model.config, qk_norm=True).config == dataclasses.replace(model.config, qk_norm=True)
    again = PixArt(**model.config.to_dict())
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_a_config_as_plain_values_survives_a_checkpoint(tmp_path):
    config = PixArtConfig(**SMALL, mlp_ratio=2.7)
    torch.save(config.to_dict(), tmp_path / "a.ckpt")
    assert PixArtConfig(**torch.load(tmp_path / "a.ckpt", weights_only=True)) == config


def test_whole_numbers_become_floats():
    assert isinstance(PixArtConfig(pe_interpolation=2).pe_interpolation, float)


def test_fields_cannot_be_set():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PixArtConfig().depth = 3


def test_arguments_that_contradict_each_other_are_refused():
    for arguments, message in (
        (dict(num_heads=5), "must be a multiple of num_heads 5"),
        (dict(input_size=15), "input_size 15 must be a multiple of patch_size 2"),
        (dict(depth=0), "PixArt's depth 0: expected at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            PixArtConfig(**{**SMALL, **arguments})


def test_some_arguments_are_checked_under_their_caller_s_names():
    assert check_arguments({"mlp_ratio": 2}) == {"mlp_ratio": 2.0}
    with pytest.raises(InputError, match="^model_kwargs.depth 0: expected at least 1"):
        check_arguments({"depth": 0}, "model_kwargs.")
    with pytest.raises(InputError, match="^model_kwargs.dept: PixArt has no such argument; the nearest is 'depth'"):
        check_arguments({"dept": 0}, "model_kwargs.")
