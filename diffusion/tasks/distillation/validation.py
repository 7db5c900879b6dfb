"""The loss of distillation on held-out samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from diffusion.components import check_dataset_tokens
from diffusion.config.distillation_settings import DistillationConfig
from diffusion.data.batch import BadItem, PatchBatch, PatchItem
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.sampler import Draw
from diffusion.tasks.held_out import HeldOutLosses

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from accelerate import Accelerator

    class DistillingTask(Protocol):
        """What the loss is taken of."""

        def collate(self, items: Sequence[PatchItem | BadItem]) -> PatchBatch: ...
        def draw_randomness(self, batch: PatchBatch) -> Any: ...
        def draw_noise(self, randomness: Any) -> Any: ...
        def compute_losses(self, network: Any, batch: PatchBatch, noise: Any) -> dict[str, torch.Tensor]: ...


class DistillationValidation(HeldOutLosses):
    """An evaluation: the mean loss of `config.validation.count` samples spread evenly over the held-out set.

    Sample i has noise, jumps and timesteps of its own seed. Raises MissingError, InputError for a set that is not there, or not as the
    network takes it.
    """

    def __init__(self, config: DistillationConfig, task: DistillingTask, accelerator: Accelerator):
        self.task = task
        self.dataset = build_dataset(**config.validation_arguments)
        super().__init__(accelerator, config.validation.count, len(self.dataset), config.train_batch_size)
        check_dataset_tokens(self.dataset, config.model_max_length, config.caption_channels)

    def losses(self, network: Any, numbers: list[int]) -> dict[str, torch.Tensor]:
        """Compute the loss of samples by their numbers, (B,)."""
        draws = [Draw(self.place(number), self.seed(number)) for number in numbers]
        batch = self.task.collate([self.dataset[draw] for draw in draws])
        randomness = self.task.draw_randomness(batch)  # on the CPU: the same on any device
        device = self.accelerator.device
        randomness = randomness._replace(noise=randomness.noise.to(device))
        return self.task.compute_losses(network, batch.to(device), self.task.draw_noise(randomness))
