"""The network, the losses and the sampler against tensors of the public implementation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from diffusion.model import PixArt
from diffusion.model.convert import load_weights
from diffusion.model.matching import load_into
from diffusion.objective import training_losses
from diffusion.sampling import sample_latents

REFERENCE = Path(__file__).parents[1] / "reference"


def load(name: str) -> tuple[PixArt, dict[str, torch.Tensor]]:
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        arguments = json.loads(file.metadata()["config"])
    model = PixArt(**arguments).eval()
    own_positions = model.pos_embed.clone()
    model.load_state_dict({key.removeprefix("model."): tensors[key] for key in tensors if key.startswith("model.")})
    assert torch.equal(own_positions, model.pos_embed)
    return model, tensors


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", ["r256", "r512"])
@torch.no_grad()
def test_forward(name):
    model, tensors = load(name)
    assert relative_error(model(tensors["in.x"], tensors["in.t"], tensors["in.y"]), tensors["out.forward"]) < 1e-5


@pytest.mark.parametrize("name", ["r256", "r512"])
@pytest.mark.parametrize("group", ["loss", "loss_t0_999"])
@torch.no_grad()
def test_losses(name, group):
    model, tensors = load(name)
    timestep = tensors["in.t"] if group == "loss" else torch.tensor([0, 999])[: len(tensors["in.t"])]
    losses = training_losses(model, tensors["loss.x0"], timestep, tensors["in.y"], tensors["loss.noise"])
    for part in ("loss", "mse", "vb"):
        assert relative_error(losses[part], tensors[f"{group}.{part}"]) < 1e-5, part


def test_dpm_solver():
    model, tensors = load("r256")
    latents = sample_latents(model, tensors["sample.z"], tensors["in.y"], model.null_condition, steps=20, guidance=2.0)
    # the reference solves in continuous time; whole timesteps differ from it by 0.1 %
    assert relative_error(latents, tensors["sample.dpm_solver.steps20.cfg2.0"]) < 0.01


@torch.no_grad()
def test_diffusers_folder_is_the_same_network():
    _, tensors = load("r256")
    weights = load_weights(REFERENCE / "r256_diffusers")
    model = PixArt(**weights.architecture).eval()
    load_into(model, weights.state_dict, "r256_diffusers")
    assert relative_error(model(tensors["in.x"], tensors["in.t"], tensors["in.y"]), tensors["out.forward"]) < 1e-5
