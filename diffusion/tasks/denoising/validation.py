"""The loss of denoising on held-out samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from diffusion.components import check_dataset_tokens
from diffusion.config.settings import Config
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.sampler import Draw
from diffusion.encoders.latents import LatentScale
from diffusion.schedule import TIMESTEPS
from diffusion.tasks.denoising.losses import BatchLosses, BatchNoise, draw_randomness
from diffusion.tasks.denoising.prediction import PredictingTask
from diffusion.tasks.held_out import HeldOutLosses, spread_evenly

if TYPE_CHECKING:
    from accelerate import Accelerator


class Validation(HeldOutLosses):
    """An evaluation: mean losses of `config.validation.count` samples spread evenly over the held-out set.

    Sample i has noise of its own seed and timestep 1 + 999 * (i * golden ratio mod 1), without timestep 0, whose bound is
    many times as large; no condition is dropped, nothing weighted.
    Raises MissingError, InputError for a set that is not there, or not as the network takes it.
    """

    def __init__(self, config: Config, task: PredictingTask, scale: LatentScale, accelerator: Accelerator):
        self.task = task
        self.batch_losses = BatchLosses(scale, config.prediction_type, dropout=0.0)
        self.dataset = build_dataset(**config.validation_arguments)
        super().__init__(accelerator, config.validation.count, len(self.dataset), config.train_batch_size)
        check_dataset_tokens(self.dataset, config.model_max_length, config.caption_channels)

    def losses(self, network: Any, numbers: list[int]) -> dict[str, torch.Tensor]:
        """Compute loss, squared error and bound of samples by their numbers, (B,) each."""
        device, seeds = self.accelerator.device, [self.seed(number) for number in numbers]
        places = [self.place(number) for number in numbers]
        batch = self.task.collate([self.dataset[Draw(*pair)] for pair in zip(places, seeds, strict=True)]).to(device)
        timestep = 1 + (spread_evenly(numbers) * (TIMESTEPS - 1)).long().to(device)
        noise = draw_randomness(seeds, batch.latents.shape[1:], torch.device("cpu")).noise.to(
            device
        )  # the same on any device
        dropped = torch.zeros(len(numbers), dtype=torch.bool, device=device)
        return self.batch_losses.losses_at(
            self.task.predictor(network),
            batch,
            BatchNoise(timestep, torch.ones(len(numbers), device=device), dropped, noise),
        )
