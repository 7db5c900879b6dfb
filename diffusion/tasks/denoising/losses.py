"""The losses of a batch as a function of the network's weights and the batch alone.

All that is random about a sample (its timestep, its noise, whether its condition is dropped) comes from the seed of its
draw: a sample's loss depends neither on the process nor on the batch that it is in, and no generator has a state to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from diffusion.data.batch import PatchBatch
from diffusion.encoders.latents import LatentScale
from diffusion.objective import training_losses
from diffusion.tasks.denoising.prediction import Predictor
from diffusion.timesteps import TimestepSampler, Uniform
from diffusion.utils.hardware import to_device
from diffusion.utils.seeds import mix_seed

UNIFORM_STREAM, NOISE_STREAM = 1, 2  # parts of mixed seeds; the seed itself is that of the draw from the posterior


class SampleRandomness(NamedTuple):
    """What is random about B samples: two uniform numbers in [0, 1), (B,) float64 on the CPU; normal noise (B, C, H, W)."""

    timestep_uniform: torch.Tensor
    dropout_uniform: torch.Tensor
    noise: torch.Tensor


class BatchNoise(NamedTuple):
    """The noise of B samples: timestep (B,) and its weight (B,), which conditions are dropped (B,), noise (B, C, H, W)."""

    timestep: torch.Tensor
    weight: torch.Tensor
    dropped: torch.Tensor
    noise: torch.Tensor


def draw_randomness(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> SampleRandomness:
    """Draw the randomness of samples (C, H, W) from their seeds; the noise on the device, where it costs nothing."""
    host, generator = torch.Generator(), torch.Generator(device)
    uniform = torch.empty(len(seeds), 2, dtype=torch.float64)
    noise = torch.empty(len(seeds), *shape, device=device)
    for seed, pair, part in zip(seeds, uniform, noise, strict=True):
        torch.rand(2, generator=host.manual_seed(mix_seed(seed, UNIFORM_STREAM)), out=pair)
        torch.randn(part.shape, generator=generator.manual_seed(mix_seed(seed, NOISE_STREAM)), device=device, out=part)
    return SampleRandomness(uniform[:, 0], uniform[:, 1], noise)


@dataclass(frozen=True)
class BatchLosses:
    """Losses of a network on batches, each times the weight of its timestep.

    dropout: share of samples that train the null condition; min_snr_gamma: as `training_losses`.
    """

    scale: LatentScale
    prediction_type: str
    dropout: float
    timesteps: TimestepSampler = field(default_factory=Uniform)
    min_snr_gamma: float | None = None

    def draw_noise(self, randomness: SampleRandomness) -> BatchNoise:
        """Choose timesteps and dropped conditions from a batch's randomness, on the device of the noise."""
        device = randomness.noise.device
        timestep, weight = self.timesteps(randomness.timestep_uniform)
        dropped = randomness.dropout_uniform < self.dropout
        return BatchNoise(
            to_device(timestep, device), to_device(weight, device), to_device(dropped, device), randomness.noise
        )

    def losses_at(self, network: Predictor, batch: PatchBatch, noise: BatchNoise) -> dict[str, torch.Tensor]:
        """Compute the losses (B,) of a batch with the noise that was drawn for it."""
        losses = training_losses(
            lambda x, t, y: network(x, t, y, noise.dropped),
            self.scale.to_network(batch.latents),
            noise.timestep,
            batch.condition,
            noise=noise.noise,
            prediction_type=self.prediction_type,
            min_snr_gamma=self.min_snr_gamma,
        )
        return {name: noise.weight * loss for name, loss in losses.items()}
