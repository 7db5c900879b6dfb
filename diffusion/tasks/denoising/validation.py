"""The loss on held-out samples: comparable between steps and between runs, since nothing of it is drawn anew."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from diffusion.components import check_dataset_tokens
from diffusion.config.settings import Config
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.sampler import Draw
from diffusion.encoders.latents import LatentScale
from diffusion.schedule import TIMESTEPS
from diffusion.tasks.denoising.losses import BatchLosses, BatchNoise, draw_randomness
from diffusion.tasks.denoising.prediction import PredictingTask
from diffusion.utils.seeds import mix_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.training.monitoring.run_log import RunLogger

log = logging.getLogger(__name__)

SEED = 0  # of all runs, whatever theirs
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, spread evenly however many there are


class Validation:
    """An evaluation: mean losses of `config.validation.count` samples spread evenly over the held-out set.

    Sample i has noise of its own seed and timestep 1 + 999 * (i * golden ratio mod 1), without timestep 0, whose bound is
    many times as large; no condition is dropped, nothing weighted.
    Raises MissingError, InputError for a set that is not there, or not as the network takes it.
    """

    steps = None

    def __init__(self, config: Config, task: PredictingTask, scale: LatentScale, accelerator: Accelerator):
        self.task = task
        self.accelerator, self.count, self.batch_size = accelerator, config.validation.count, config.train_batch_size
        self.losses = BatchLosses(scale, config.prediction_type, dropout=0.0)
        self.dataset = build_dataset(**config.validation_arguments)
        check_dataset_tokens(self.dataset, config.model_max_length, config.caption_channels)

    def __call__(self, network: nn.Module, logger: RunLogger, step: int) -> None:
        """Compute the losses of a network in eval mode, and log them."""
        losses = self.compute(network)
        log.info("step %d: validation %s", step, logger.format_losses(losses))
        logger.curves("validation", losses, step)

    @torch.no_grad()
    def compute(self, network: nn.Module) -> dict[str, float]:
        """Return the losses of a network in eval mode; all processes share the samples, and call this together."""
        sums: dict[str, torch.Tensor] = {}
        for numbers in self._shares():
            for name, loss in self._losses(network, numbers).items():
                is_counted = torch.tensor([number < self.count for number in numbers], device=loss.device)
                sums[name] = sums.get(name, 0) + torch.where(is_counted, loss, 0).sum()
        totals = cast(torch.Tensor, self.accelerator.reduce(torch.stack(list(sums.values())), "sum"))
        return dict(zip(sums, (totals / self.count).tolist(), strict=True))

    def _shares(self) -> list[list[int]]:
        """Return this process's samples in batches: as many as any other's, which a sharded network needs, so some too many."""
        each = math.ceil(self.count / self.accelerator.num_processes)
        first = each * self.accelerator.process_index
        own = list(range(first, first + each))
        return [own[i : i + self.batch_size] for i in range(0, each, self.batch_size)]

    def _losses(self, network: nn.Module, numbers: list[int]) -> dict[str, torch.Tensor]:
        device, length = self.accelerator.device, len(self.dataset)
        seeds = [mix_seed(SEED, number) for number in numbers]
        places = [number % self.count * length // self.count for number in numbers]
        batch = self.task.collate([self.dataset[Draw(*pair)] for pair in zip(places, seeds, strict=True)]).to(device)
        spread = torch.tensor([number * GOLDEN % 1 for number in numbers], dtype=torch.float64)
        timestep = 1 + (spread * (TIMESTEPS - 1)).long().to(device)
        noise = draw_randomness(seeds, batch.latents.shape[1:], torch.device("cpu")).noise.to(
            device
        )  # the same on any device
        dropped = torch.zeros(len(numbers), dtype=torch.bool, device=device)
        return self.losses.losses_at(
            self.task.predictor(network),
            batch,
            BatchNoise(timestep, torch.ones(len(numbers), device=device), dropped, noise),
        )
