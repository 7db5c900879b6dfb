"""Training batches on their way to the network: read, sent to the device, given their chance; on a GPU one ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from diffusion.data.batch import PatchBatch
from diffusion.training.batch_losses import Chance, chance
from diffusion.utils.errors import InputError


class PrefetchedBatch(NamedTuple):
    """A batch on the device, what is random about it, and for how many seconds the device had nothing to do but wait."""

    batch: PatchBatch
    chance: Chance
    idle_seconds: float


class DevicePrefetcher:
    """This process's batches on a device, in order.

    A GPU computes while the host goes on. The host waits for it once a step; what it has to do for the next batch, it
    does before that, in `look_ahead`, so that afterwards the GPU does not wait for the host.
    """

    def __init__(self, batches: Iterator[PatchBatch], device: torch.device):
        self._batches, self._device = batches, device
        self.is_asynchronous = device.type != "cpu"  # which cannot compute meanwhile
        self._next: PrefetchedBatch | InputError | None = None

    def take(self) -> PrefetchedBatch:
        """The next batch. Raises InputError for one that cannot be read."""
        prefetched, self._next = self._next, None
        if isinstance(prefetched, InputError):
            raise prefetched
        return prefetched or self._prepare()

    def prefetch(self) -> None:
        """Prepare the next batch while the device computes."""
        if not self.is_asynchronous or self._next is not None:
            return
        try:
            self._next = self._prepare()
        except InputError as error:  # is of the next step: this one is sound, and may be saved
            self._next = error

    def _prepare(self) -> PrefetchedBatch:
        requested, computed = time.perf_counter(), record_event(self._device)
        batch = next(self._batches)
        idle_seconds = time.perf_counter() - requested if computed is None else seconds_idle(computed)
        batch = batch.to(self._device)
        return PrefetchedBatch(batch, chance(batch.seeds, batch.latents.shape[1:], self._device), idle_seconds)


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """What happens on a GPU once it has done all that it was told so far."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_idle(event: torch.cuda.Event) -> float:
    """Seconds that a GPU has had nothing to do since; 0 while it still computes, which is not waited for."""
    if not event.query():
        return 0.0
    now = torch.cuda.Event(enable_timing=True)
    now.record()
    now.synchronize()
    return event.elapsed_time(now) / 1000
