"""Mean losses on held-out samples: comparable between steps and between runs, since nothing of them is drawn anew."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from diffusion.utils.seeds import mix_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.training.monitoring.run_log import RunLogger

log = logging.getLogger(__name__)

SEED = 0  # of all runs, whatever theirs
GOLDEN = (math.sqrt(5) - 1) / 2  # multiples of it, modulo 1, spread evenly however many there are


class HeldOutLosses(ABC):
    """An evaluation: mean losses of `count` samples spread evenly over a held-out set of `length` samples."""

    steps = None

    def __init__(self, accelerator: Accelerator, count: int, length: int, batch_size: int):
        self.accelerator, self.count, self.length, self.batch_size = accelerator, count, length, batch_size

    @abstractmethod
    def losses(self, network: Any, numbers: list[int]) -> dict[str, torch.Tensor]:
        """Compute losses (B,) of samples by their numbers, of a network in eval mode."""

    def __call__(self, network: nn.Module, logger: RunLogger, step: int) -> None:
        """Compute the losses of a network in eval mode, and log them."""
        losses = self.compute(network)
        more = "".join(f", {name} {value:.4f}" for name, value in losses.items() if name not in logger.losses)
        log.info("step %d: validation %s%s", step, logger.format_losses(losses), more)
        logger.curves("validation", losses, step)

    @torch.no_grad()
    def compute(self, network: nn.Module) -> dict[str, float]:
        """Return the losses of a network in eval mode; all processes share the samples, and call this together."""
        sums: dict[str, torch.Tensor] = {}
        for numbers in self._shares():
            for name, loss in self.losses(network, numbers).items():
                is_counted = torch.tensor([number < self.count for number in numbers], device=loss.device)
                sums[name] = sums.get(name, 0) + torch.where(is_counted, loss, 0).sum()
        totals = cast(torch.Tensor, self.accelerator.reduce(torch.stack(list(sums.values())), "sum"))
        return dict(zip(sums, (totals / self.count).tolist(), strict=True))

    def place(self, number: int) -> int:
        """Return the place in the held-out set of a sample by its number."""
        return number % self.count * self.length // self.count

    def seed(self, number: int) -> int:
        """Return the seed of a sample by its number."""
        return mix_seed(SEED, number)

    def _shares(self) -> list[list[int]]:
        """Return this process's samples in batches: as many as any other's, which a sharded network needs, so some too many."""
        each = math.ceil(self.count / self.accelerator.num_processes)
        first = each * self.accelerator.process_index
        own = list(range(first, first + each))
        return [own[i : i + self.batch_size] for i in range(0, each, self.batch_size)]


def spread_evenly(numbers: list[int]) -> torch.Tensor:
    """Return numbers in [0, 1), float64, that lie evenly however many there are: multiples of the golden ratio, modulo 1."""
    return torch.tensor([number * GOLDEN % 1 for number in numbers], dtype=torch.float64)
