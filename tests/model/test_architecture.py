"""The architecture that tensors show."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pixart import ARGUMENTS, build_small_pixart

from diffusion.model import PixArt
from diffusion.model.architecture import infer_architecture, position_grid, published_positions, token_positions
from diffusion.model.pixart_config import PixArtConfig
from diffusion.utils.errors import InputError

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture
def model() -> PixArt:
    return build_small_pixart()


def test_architecture_is_read_off_the_tensors(model):
    inferred = infer_architecture(model.state_dict())
    assert {name: inferred[name] for name in ARGUMENTS if name != "num_heads"} == {
        name: value for name, value in ARGUMENTS.items() if name != "num_heads"
    }
    assert PixArt(model.config).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("interpolation", [0.5, 1.0, 2.0])
def test_interpolation_is_read_off_the_positions(interpolation):
    model = PixArt(**{**ARGUMENTS, "pe_interpolation": interpolation})
    assert infer_architecture(model.state_dict())["pe_interpolation"] == interpolation


def test_published_positions_follow_from_the_number_of_tokens():
    for tokens, size, interpolation in ((1, 32, 0.5), (4, 64, 1.0), (16, 128, 2.0)):
        expected = {"input_size": size, "pe_interpolation": interpolation}
        assert published_positions({"model_max_length": tokens}, "w") == expected
    assert published_positions({"model_max_length": 4, "input_size": 32}, "w") == {"pe_interpolation": 0.5}
    with pytest.raises(InputError, match="3 tokens make no square"):
        published_positions({"model_max_length": 3}, "w")


def test_the_ratio_of_the_mlp_gives_its_hidden_units_again():
    tensors = dict(PixArt(**ARGUMENTS).state_dict())
    for hidden in range(30, 150):
        tensors["blocks.0.mlp.fc1.weight"] = torch.empty(hidden, 28, device="meta")
        tensors["x_embedder.proj.weight"] = torch.empty(28, 16, 2, 2, device="meta")
        config = PixArtConfig(hidden_size=28, num_heads=4, mlp_ratio=infer_architecture(tensors)["mlp_ratio"])
        assert config.mlp_width == hidden


def test_computed_positions_are_the_network_s():
    model = PixArt(**ARGUMENTS)
    assert torch.equal(position_grid(model.config.to_dict()), model.pos_embed)
    assert torch.equal(token_positions(model.config.to_dict()), model.y_pos_embed)
