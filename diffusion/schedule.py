"""The noise schedule, the one source of betas for training and sampling: 1000 steps, linear from 1e-4 to 0.02.

Notation of Ho et al. 2020 and Nichol & Dhariwal 2021: alpha_bar is the cumulative product of 1 - beta,
q(x_t | x_0) = N(sqrt(alpha_bar) x_0, 1 - alpha_bar), and q(x_{t-1} | x_t, x_0) the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from diffusion.utils.hardware import to_device

TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02


@dataclass(frozen=True)
class Schedule:
    """Betas (T,) in float64 and what follows from them."""

    betas: torch.Tensor

    @cached_property
    def alpha_bar(self) -> torch.Tensor:
        """Cumulative products (T,) of 1 - beta: the share of the signal's variance that is left in x_t."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def noise_levels(self) -> torch.Tensor:
        """Std of the noise over std of the signal in x_t, (T,): sigma of Karras et al. 2022; here 0.01 to 157."""
        return ((1 - self.alpha_bar) / self.alpha_bar).sqrt()

    @cached_property
    def signal_to_noise(self) -> torch.Tensor:
        """SNR of x_t, (T,): variance of the signal over variance of the noise; here 1e4 down to 4e-5."""
        return self.alpha_bar / (1 - self.alpha_bar)

    @cached_property
    def alpha_bar_previous(self) -> torch.Tensor:
        """alpha_bar of timestep t - 1, (T,); 1 for t = 0."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @cached_property
    def posterior_variance(self) -> torch.Tensor:
        """Variance of q(x_{t-1} | x_t, x_0), (T,); zero at t = 0."""
        return self.betas * (1 - self.alpha_bar_previous) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance(self) -> torch.Tensor:
        """Logarithm of the posterior variance, (T,); log(0) is undefined at t = 0, so the value of t = 1 is used there."""
        return torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()

    @cached_property
    def posterior_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of x_0 and of x_t, (T,) each, in the mean of q(x_{t-1} | x_t, x_0)."""
        clean_weight = self.betas * self.alpha_bar_previous.sqrt() / (1 - self.alpha_bar)
        noisy_weight = (1 - self.alpha_bar_previous) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)
        return clean_weight, noisy_weight


def linear_schedule(timesteps: int = TIMESTEPS) -> Schedule:
    """Return the project's schedule: betas that rise linearly over the timesteps (Ho et al. 2020)."""
    return Schedule(torch.linspace(BETA_START, BETA_END, timesteps, dtype=torch.float64))


def gather_timestep(values: torch.Tensor, timestep: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return values (T,) at timesteps (B,), as float32 (B, 1, 1, 1) on the device of `like` (B, C, H, W)."""
    picked = to_device(values.to(torch.float32), like.device)[timestep]
    return picked.reshape(-1, *[1] * (like.ndim - 1))


def add_noise(schedule: Schedule, x0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return a sample of q(x_t | x_0): x0, noise (B, C, H, W), timestep (B,) -> x_t (B, C, H, W)."""
    alpha_bar = schedule.alpha_bar
    return (
        gather_timestep(alpha_bar.sqrt(), timestep, x0) * x0
        + gather_timestep((1 - alpha_bar).sqrt(), timestep, x0) * noise
    )


def velocity(schedule: Schedule, x0: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0 (Salimans & Ho 2022, section 4), (B, C, H, W)."""
    return add_noise(schedule, noise, -x0, timestep)


def ddim_step(
    schedule: Schedule,
    prediction: torch.Tensor,
    x_t: torch.Tensor,
    timestep: torch.Tensor,
    target: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """Return x at timestep `target` (B,) by one step of DDIM from x_t (B, C, H, W) at `timestep` (B,) with what a network predicts.

    With v, x_s = cos(d) x_t - sin(d) v, d being the angle between both noise levels (Salimans & Ho 2022, appendix D).
    """
    cosine, sine = _angle(schedule, timestep, target, x_t)
    if prediction_type == "epsilon":
        signal, noise = _signal_and_noise(schedule, timestep, x_t)
        prediction = (prediction - noise * x_t) / signal
    return cosine * x_t - sine * prediction


def prediction_of_step(
    schedule: Schedule,
    x_s: torch.Tensor,
    x_t: torch.Tensor,
    timestep: torch.Tensor,
    target: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """Return the noise or velocity with which `ddim_step` leads from x_t at `timestep` (B,) to x_s at `target` (B,)."""
    cosine, sine = _angle(schedule, timestep, target, x_t)
    v = (cosine * x_t - x_s) / sine
    return noise_of_velocity(schedule, v, x_t, timestep) if prediction_type == "epsilon" else v


def clean_of_prediction(
    schedule: Schedule, prediction: torch.Tensor, x_t: torch.Tensor, timestep: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """Return the latents without noise (B, C, H, W) that belong to a predicted noise or velocity in x_t."""
    signal, noise = _signal_and_noise(schedule, timestep, x_t)
    if prediction_type == "epsilon":
        return (x_t - noise * prediction) / signal
    return signal * x_t - noise * prediction


def _signal_and_noise(
    schedule: Schedule, timestep: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    alpha_bar = schedule.alpha_bar
    return gather_timestep(alpha_bar.sqrt(), timestep, like), gather_timestep((1 - alpha_bar).sqrt(), timestep, like)


def _angle(
    schedule: Schedule, timestep: torch.Tensor, target: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine of the angle between the noise levels of two timesteps, (B, 1, 1, 1) each."""
    (signal_t, noise_t), (signal_s, noise_s) = (_signal_and_noise(schedule, step, like) for step in (timestep, target))
    return signal_t * signal_s + noise_t * noise_s, noise_t * signal_s - signal_t * noise_s


def noise_of_velocity(schedule: Schedule, v: torch.Tensor, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return the noise in x_t (B, C, H, W) that belongs to a velocity v: sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t."""
    return add_noise(schedule, v, x_t, timestep)
