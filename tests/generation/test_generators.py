"""Makers of images: what an image depends on, and conditions of images smaller than a window."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from diffusion.condition import Condition
from diffusion.generation.conditions import NamedCondition
from diffusion.generation.generators import TOKEN_CELLS, ImageMaker, LargeImageMaker, fill_window
from diffusion.generation.solver import Solver
from diffusion.panorama import Windows
from diffusion.schedule import linear_schedule
from diffusion.utils.errors import InputError

ALPHA_BAR = linear_schedule().alpha_bar.float()
SIDE = 2 * TOKEN_CELLS  # cells of the network's own images: four tokens


class ControlledNetwork(torch.nn.Module):
    """Knows the latents that its condition wants: the mean of the tokens plus the weighted control."""

    config = SimpleNamespace(in_channels=1)
    null_condition = torch.zeros(4, 3)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        wanted = condition.tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        if condition.control is not None and condition.weight is not None:
            wanted = wanted + condition.weight.view(-1, 1, 1, 1) * condition.control
        alpha_bar = ALPHA_BAR[timestep].view(-1, 1, 1, 1)
        noise = (x - alpha_bar.sqrt() * wanted) / (1 - alpha_bar).sqrt()
        return torch.cat([noise, -torch.ones_like(x)], dim=1)


class Codec:
    """Decodes a latent to pixels of its sign and size."""

    name = "sign"
    vae = torch.nn.Linear(1, 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.expand(-1, 3, -1, -1).clamp(-1, 1)


@pytest.fixture
def run() -> SimpleNamespace:
    network = ControlledNetwork()
    config = SimpleNamespace(input_size=SIDE, prediction_type="epsilon")
    return SimpleNamespace(
        model=network,
        predictor=lambda interval, cache, timesteps: network,
        student=None,
        weak_predictor=lambda interval, cache: None,
        controlnet=None,
        config=config,
        null_tokens=network.null_condition,
        device=torch.device("cpu"),
        checkpoint="a.ckpt",
    )


def named(level: float, control: torch.Tensor | None = None) -> NamedCondition:
    return NamedCondition(str(level), Condition(torch.full((1, 4, 3), level), control))


def test_an_image_follows_from_its_condition_and_number_alone(run):
    conditions = [named(0.1), named(-0.4), named(0.3, torch.full((1, 1, SIDE, SIDE), -0.5))]
    maker = ImageMaker(run, Codec(), conditions, seed=3, solver=Solver(steps=5, guidance=1.0))
    together = {i: pixels for i, _, pixels in maker.images([0, 1, 2])}
    for i, level in enumerate((0.1, -0.4, 0.3 - 0.5)):
        ((number, condition, pixels),) = maker.images([i])
        assert number == i and condition is conditions[i]
        assert (pixels.int() - together[i].int()).abs().max() <= 1
        assert abs(pixels.float().mean().item() / 127.5 - 1 - level) < 0.02
    ((_, _, same_noise),) = maker.images([0], noises=[1])
    ((_, _, own_noise),) = maker.images([0])
    assert not torch.equal(same_noise, own_noise)


def test_latents_that_are_not_finite_raise(run):
    maker = ImageMaker(run, Codec(), [named(float("nan"))], seed=0, solver=Solver(steps=2, guidance=1.0))
    with pytest.raises(InputError, match="latents are not finite: a.ckpt is spoilt"):
        list(maker.images([0]))


def test_each_part_of_a_large_image_follows_its_part_of_the_control(run):
    control = torch.zeros(1, 1, 2 * SIDE, SIDE)
    control[:, :, SIDE:] = 0.5
    condition = Condition(torch.full((1, 4, 2, 3), -0.25), control)
    maker = LargeImageMaker(
        run, Codec(), seed=0, solver=Solver(steps=5, guidance=2.0), stride=SIDE // 2, batch_size=2, decode_tile=64
    )
    latents = maker.latents([0], condition)
    assert latents.shape == control.shape
    expected = 2 * (control - 0.25)  # guidance 2 from a null condition of zero
    torch.testing.assert_close(latents, expected, rtol=0, atol=0.06)


def test_a_small_image_is_the_corner_of_a_window():
    windows = Windows(SIDE, SIDE, SIDE, SIDE)
    tokens, control = torch.arange(2.0).view(1, 1, 2, 1), torch.rand(1, 1, TOKEN_CELLS, SIDE)
    filled = fill_window(Condition(tokens, control), windows)
    assert filled.tokens.view(2, 2).tolist() == [[0, 1], [0, 1]]
    assert filled.control is not None and filled.control.shape == (1, 1, SIDE, SIDE)
    assert torch.equal(filled.control[:, :, :TOKEN_CELLS], control)
    assert torch.equal(filled.control[0, 0, -1], control[0, 0, -1])
    full_size = Condition(torch.rand(1, 2, 2, 1))
    assert torch.equal(fill_window(full_size, windows).tokens, full_size.tokens)
