"""What a run counts: mean losses, rates and waiting times, and samples that could not be read."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from diffusion.data.batch import BadItem, Batch
from diffusion.utils.errors import InputError
from diffusion.utils.memory import peak_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

FEW_ITEMS = 1000  # taken for read from the start: a share of a few items says nothing


class Meter:
    """Means over the steps since the last reading, and over all processes; kept on the device until read."""

    def __init__(self, accelerator: Accelerator, losses: Sequence[str]):
        self.accelerator, self.losses = accelerator, losses
        self._reset()

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Count the losses (B,) of one batch."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach().mean()
        self.batches += 1

    def end_step(self, waited: float) -> None:
        """Count an optimizer step, and the seconds that its data was waited for."""
        self.steps, self.waited = self.steps + 1, self.waited + waited

    def read(self, global_batch: int) -> dict[str, float]:
        """Mean losses, samples a second, the share of time spent waiting for data, memory; and count from zero again.

        Losses are NaN when every step since the last reading was skipped.
        """
        means = torch.stack(
            [self.sums.get(name, torch.zeros((), device=self.accelerator.device)) for name in self.losses]
        )
        means = self.accelerator.reduce(means / self.batches if self.batches else means * float("nan"), "mean")
        numbers = cast(torch.Tensor, means).tolist()  # waits for the device, which the time is to include
        seconds = time.perf_counter() - self.since
        values = dict(zip(self.losses, numbers, strict=True))
        values |= {"samples_per_second": self.steps * global_batch / seconds, "data_wait": self.waited / seconds}
        values |= {"memory_gb": peak_memory(self.accelerator.device) / 1e9}
        self._reset()
        return values

    def start_clock(self) -> None:
        """Begin to count the time of the rates."""
        self.since = time.perf_counter()

    def exclude_time(self, seconds: float) -> None:
        """Exclude a time in which nothing was trained from the rates."""
        self.since += seconds

    def state_dict(self) -> dict[str, Any]:
        """Return what has been counted since the last reading, but for the time."""
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "batches": self.batches}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load sums and batches."""
        self.sums = {name: total.to(self.accelerator.device) for name, total in saved["sums"].items()}
        self.batches = saved["batches"]

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.batches, self.steps, self.waited, self.since = 0, 0, 0.0, time.perf_counter()


def redistribute_meters(meters: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """Redistribute meter states over `count` processes, preserving the mean; one that has counted nothing names no losses."""
    names = dict.fromkeys(name for meter in meters for name in meter["sums"])
    sums = {name: sum(meter["sums"].get(name, 0) for meter in meters) / count for name in names}
    return {"sums": sums, "batches": sum(meter["batches"] for meter in meters) / count}


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that the process has held: on a GPU what torch has allocated there, else what the system gave it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()


class BadItems:
    """Items that could not be read: counted over all processes, each patch named once in the log.

    Raises InputError when they are more than `limit` of what was read.
    """

    def __init__(self, limit: float):
        self.limit, self.bad, self.read = limit, 0, 0
        self._named: set[str] = set()
        self._new: list[BadItem] = []
        self._new_read = 0

    def add(self, batch: Batch) -> None:
        """Count one batch of this process."""
        self._new += batch.bad
        self._new_read += len(batch) + len(batch.bad)

    def synchronise(self) -> dict[str, float]:
        """Add up what all processes met since the last call; to be called by all of them."""
        from accelerate.utils import gather_object

        for new, read in gather_object([(self._new, self._new_read)]):
            self.bad, self.read = self.bad + len(new), self.read + read
            for item in new:
                if item.name not in self._named:
                    log.warning("skipped %s: %s", item.name, item.reason)
                    self._named.add(item.name)
        self._new, self._new_read = [], 0
        self._check()
        return {"bad_items": self.bad}

    def state_dict(self) -> dict[str, int]:
        """Return the counts; after `synchronise`, the same in all processes."""
        return {"bad": self.bad, "read": self.read}

    def load_state_dict(self, saved: Mapping[str, int]) -> None:
        """Load the counts."""
        self.bad, self.read = saved["bad"], saved["read"]

    def _check(self) -> None:
        if self.bad > self.limit * max(self.read, FEW_ITEMS):
            raise InputError(
                f"{self.bad} of {self.read} items could not be read, more than max_bad_fraction {self.limit:g} "
                f"(of at least {FEW_ITEMS}); the log names them. The weights are those of the last checkpoint"
            )
