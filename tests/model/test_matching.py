"""Weights compared with the network that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pixart import ARGUMENTS, build_small_pixart

from diffusion.model import PixArt
from diffusion.model.convert import load_weights
from diffusion.model.matching import add_positions, check_fit, check_metadata, load_into
from diffusion.utils.errors import InputError

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture
def model() -> PixArt:
    return build_small_pixart()


def test_another_architecture_is_named(model, tmp_path):
    torch.save({"state_dict": PixArt(**{**ARGUMENTS, "hidden_size": 32, "depth": 4}).state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="unknown: blocks.3.*of another shape: pos_embed") as error:
        load_into(model, load_weights(tmp_path / "a.ckpt").state_dict, tmp_path / "a.ckpt")
    assert "\n" not in str(error.value)


def test_files_are_compared_in_what_they_say_and_in_what_shapes_the_network(model):
    check_metadata({}, model, "epsilon", "a.ckpt")
    check_metadata({"class_dropout_prob": 0.5, "fp32_attention": True, "mlp_ratio": 2.009}, model, "epsilon", "a.ckpt")
    for metadata, message in (
        ({"num_heads": 2}, "num_heads 2 instead of 4"),
        ({"mlp_ratio": 2.1}, "mlp_ratio 2.1 instead of 2.0"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio nan instead of 2.0"),
        ({"prediction_type": "v_prediction"}, "prediction_type v_prediction instead of epsilon"),
    ):
        with pytest.raises(InputError, match=message):
            check_metadata(metadata, model, "epsilon", "a.ckpt")
        check_metadata(metadata, model, "epsilon", "a.ckpt", ignore=metadata)


def test_weights_without_positions_get_those_of_the_network(model):
    stripped = {name: tensor for name, tensor in model.state_dict().items() if "pos_embed" not in name}
    completed = add_positions(model, stripped)
    check_fit(model.state_dict(), completed, "w")
    assert completed.keys() == model.state_dict().keys() and torch.equal(completed["pos_embed"], model.pos_embed)
    with pytest.raises(
        InputError, match="w is of another architecture than the network .missing: pos_embed, y_pos_embed"
    ):
        check_fit(model.state_dict(), stripped, "w")
