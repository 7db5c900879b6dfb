"""The schedule against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from diffusion.sampling import prepare_scheduler
from diffusion.schedule import (
    add_noise,
    clean_of_prediction,
    ddim_step,
    linear_schedule,
    noise_of_velocity,
    prediction_of_step,
    velocity,
)

SCHEDULE = linear_schedule()


def test_noise_levels_are_std_of_noise_over_std_of_signal():
    """sigma = sqrt((1 - alpha_bar) / alpha_bar): 0.01 at the first step, and at the last the noise alone is left."""
    levels = SCHEDULE.noise_levels
    assert levels[0] == pytest.approx(0.01, rel=1e-3) and levels[-1] == pytest.approx(157.4, rel=1e-2)
    assert torch.all(levels.diff() > 0)


def test_posterior_is_that_of_ddpm():
    assert SCHEDULE.betas[0].item() == pytest.approx(1e-4) and SCHEDULE.betas[-1].item() == pytest.approx(0.02)
    assert SCHEDULE.alpha_bar[-1].item() == pytest.approx(math.exp(torch.log1p(-SCHEDULE.betas).sum().item()))
    assert SCHEDULE.posterior_variance[0] == 0
    assert torch.all(SCHEDULE.posterior_variance[1:] < SCHEDULE.betas[1:])


def test_noise_is_added_by_the_closed_form():
    x0, noise, timestep = torch.randn(3, 16, 8, 8), torch.randn(3, 16, 8, 8), torch.tensor([0, 500, 999])
    for i, t in enumerate(timestep):
        alpha_bar = SCHEDULE.alpha_bar[t]
        expected = alpha_bar.sqrt() * x0[i].double() + (1 - alpha_bar).sqrt() * noise[i].double()
        torch.testing.assert_close(add_noise(SCHEDULE, x0, noise, timestep)[i].double(), expected, rtol=0, atol=1e-6)


def test_velocity_and_noise_are_inverses():
    x0, noise, timestep = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([3, 900])
    x_t, v = add_noise(SCHEDULE, x0, noise, timestep), velocity(SCHEDULE, x0, noise, timestep)
    torch.testing.assert_close(noise_of_velocity(SCHEDULE, v, x_t, timestep), noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_of_ddim_and_the_prediction_of_a_step_are_inverse_and_diffusers_own(prediction_type):
    generator = torch.Generator().manual_seed(0)
    x, prediction = torch.randn(2, 2, 4, 4, 4, generator=generator)
    start, end = torch.tensor([874, 874]), torch.tensor([500, 500])
    stepped = ddim_step(SCHEDULE, prediction, x, start, end, prediction_type)
    back = prediction_of_step(SCHEDULE, stepped, x, start, end, prediction_type)
    assert torch.allclose(back, prediction, atol=1e-4)
    scheduler = prepare_scheduler("ddim", 2, prediction_type, "874,500")
    assert torch.allclose(stepped, scheduler.step(prediction, 874, x, return_dict=False)[0], atol=1e-5)
    clean = clean_of_prediction(SCHEDULE, prediction, x, start, prediction_type)
    noise = prediction if prediction_type == "epsilon" else noise_of_velocity(SCHEDULE, prediction, x, start)
    assert torch.allclose(add_noise(SCHEDULE, clean, noise, start), x, atol=1e-4)
