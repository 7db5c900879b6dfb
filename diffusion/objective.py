"""The training loss: squared error of the predicted noise (or velocity) plus the variational bound of the learned variance.

Improved DDPM (Nichol & Dhariwal 2021), section 3.1: all 1000 steps; the bound is in bits per dimension and not rescaled,
and its gradient is stopped at the mean, so that it trains the variance alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch

from diffusion.schedule import Schedule, add_noise, gather_timestep, linear_schedule, noise_of_velocity, velocity

_SCHEDULE = linear_schedule()
AnyCondition = TypeVar("AnyCondition")


def training_losses(
    model: Callable[[torch.Tensor, torch.Tensor, AnyCondition], torch.Tensor],
    x0: torch.Tensor,
    timestep: torch.Tensor,
    y: AnyCondition,
    noise: torch.Tensor | None = None,
    schedule: Schedule = _SCHEDULE,
    prediction_type: str = "epsilon",
    min_snr_gamma: float | None = None,
) -> dict[str, torch.Tensor]:
    """Return the losses of `model(x_t, timestep, y) -> (B, 2C, H, W)` on clean network latents x0 (B, C, H, W).

    y: the condition, tokens (B, L, D) or whatever else the model takes, handed to it as it is.

    timestep (B,) int64 in 0..999; noise (B, C, H, W), drawn when not given. The first C output channels are the noise,
    as published, or with prediction_type `v_prediction` the velocity (Salimans & Ho 2022): where the input is mostly
    noise, a small error of the noise is a large error of x0, and an error of the velocity is not.
    min_snr_gamma: weight the squared error by `min_snr_weight`; None: no weight.
    Returns float32 (B,) tensors: `mse`, the squared error of noise or velocity, `vb`, the variational bound, and `loss`,
    their sum with `mse` weighted. `mse` and `vb` are never weighted, so that runs can be compared.
    Raises ValueError when the model's output has no variance channels, or for another prediction_type.
    """
    noise = torch.randn_like(x0) if noise is None else noise
    x_t = add_noise(schedule, x0, noise, timestep)
    output = model(x_t, timestep, y).float()
    if output.shape[1] != 2 * x0.shape[1]:
        raise ValueError(f"output of {output.shape[1]} channels: expected {2 * x0.shape[1]}, noise then variance")
    predicted, variance = output.chunk(2, dim=1)
    if prediction_type == "epsilon":
        mse, predicted_noise = mean_per_sample((noise - predicted) ** 2), predicted
    elif prediction_type == "v_prediction":
        mse = mean_per_sample((velocity(schedule, x0, noise, timestep) - predicted) ** 2)
        predicted_noise = noise_of_velocity(schedule, predicted, x_t, timestep)
    else:
        raise ValueError(f"prediction_type {prediction_type!r}: expected epsilon or v_prediction")
    vb = variational_bound(schedule, x0, x_t, timestep, predicted_noise.detach(), variance)
    if min_snr_gamma is None:
        return {"loss": mse + vb, "mse": mse, "vb": vb}
    weight = gather_timestep(min_snr_weight(schedule, min_snr_gamma, prediction_type), timestep, mse)  # (B,)
    return {"loss": weight * mse + vb, "mse": mse, "vb": vb}


def min_snr_weight(schedule: Schedule, gamma: float, prediction_type: str) -> torch.Tensor:
    """Return the Min-SNR-gamma weight of every timestep, (T,): the error of x0 is weighted by min(SNR, gamma).

    Hang et al. 2023, section 3.4. The squared error of the noise is that of x0 times SNR, the error of the velocity is
    that of x0 times SNR + 1; the weight is divided by this factor. Timesteps of little noise, where x0 is easy to
    predict, then no longer outweigh the others. The paper uses gamma = 5.
    Raises ValueError for another prediction_type.
    """
    snr = schedule.signal_to_noise
    per_error_of_x0 = {"epsilon": snr, "v_prediction": snr + 1}
    if prediction_type not in per_error_of_x0:
        raise ValueError(f"prediction_type {prediction_type!r}: expected epsilon or v_prediction")
    return snr.clamp(max=gamma) / per_error_of_x0[prediction_type]


def variational_bound(
    schedule: Schedule,
    x0: torch.Tensor,
    x_t: torch.Tensor,
    timestep: torch.Tensor,
    noise: torch.Tensor,
    variance: torch.Tensor,
) -> torch.Tensor:
    """Return one term of the variational bound in bits per dimension, (B,): a KL for t > 0, the data's likelihood for t = 0.

    x0, x_t, noise (the predicted one) and variance: (B, C, H, W); timestep (B,). The variance, from -1 to 1,
    interpolates between the logarithms of the posterior variance and of beta.
    """
    alpha_bar = schedule.alpha_bar
    clean_weight, noisy_weight = schedule.posterior_weights
    predicted_x0 = (
        gather_timestep((1 / alpha_bar).sqrt(), timestep, x_t) * x_t
        - gather_timestep((1 / alpha_bar - 1).sqrt(), timestep, x_t) * noise
    )
    true_mean = gather_timestep(clean_weight, timestep, x_t) * x0 + gather_timestep(noisy_weight, timestep, x_t) * x_t
    mean = (
        gather_timestep(clean_weight, timestep, x_t) * predicted_x0 + gather_timestep(noisy_weight, timestep, x_t) * x_t
    )
    true_log_variance = gather_timestep(schedule.posterior_log_variance, timestep, x_t)
    log_variance = interpolate_log_variance(
        variance, true_log_variance, gather_timestep(schedule.betas.log(), timestep, x_t)
    )
    kl = mean_per_sample(gaussian_kl(true_mean, true_log_variance, mean, log_variance))
    likelihood = mean_per_sample(discretized_log_likelihood(x0, mean, 0.5 * log_variance))
    return torch.where(timestep == 0, -likelihood, kl) / math.log(2)


def interpolate_log_variance(value: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return the log-variance between two bounds: value -1 gives `low`, 1 gives `high` (Improved DDPM, equation 15)."""
    fraction = (value + 1) / 2
    return fraction * high + (1 - fraction) * low


def gaussian_kl(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """Return KL(N1 || N2) in nats, elementwise."""
    difference = log_variance2 - log_variance1
    return 0.5 * (-1 + difference + (-difference).exp() + (mean1 - mean2) ** 2 * (-log_variance2).exp())


def discretized_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Return the log-probability, in nats, of the bin of width 2/255 around x, with open bins beyond -1 and 1.

    The bins are those of 8-bit images (Ho et al. 2020, equation 13); the objective applies them to latents unchanged.
    """
    inverse_std = (-log_std).exp()
    upper = normal_cdf((x - mean + 1 / 255) * inverse_std)
    lower = normal_cdf((x - mean - 1 / 255) * inverse_std)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """Return the standard normal's distribution function, in the tanh approximation of the published objective."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mean_per_sample(x: torch.Tensor) -> torch.Tensor:
    """Return the mean (B,) over all axes but the first."""
    return x.flatten(1).mean(1)
