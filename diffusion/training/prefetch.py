"""Training batches on their way to the network: read, sent to the device, given their chance; on a GPU one ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from diffusion.data.batch import PatchBatch
from diffusion.training.batch_losses import Chance, chance
from diffusion.utils.errors import InputError


class Supplied(NamedTuple):
    """A batch on the device, what is random about it, and for how many seconds the device had nothing to do but wait."""

    batch: PatchBatch
    chance: Chance
    waited: float


class Supply:
    """This process's batches on a device, in order.

    A GPU computes while the host goes on. The host waits for it once a step; what it has to do for the next batch, it
    does before that, in `look_ahead`, so that afterwards the GPU does not wait for the host.
    """

    def __init__(self, batches: Iterator[PatchBatch], device: torch.device):
        self._batches, self._device = batches, device
        self.looks_ahead = device.type != "cpu"  # which cannot compute meanwhile
        self._next: Supplied | InputError | None = None

    def take(self) -> Supplied:
        """The next batch. Raises InputError for one that cannot be read."""
        following, self._next = self._next, None
        if isinstance(following, InputError):
            raise following
        return following or self._prepare()

    def look_ahead(self) -> None:
        """Prepare the next batch while the device computes."""
        if not self.looks_ahead or self._next is not None:
            return
        try:
            self._next = self._prepare()
        except InputError as error:  # is of the next step: this one is sound, and may be saved
            self._next = error

    def _prepare(self) -> Supplied:
        asked, computed = time.perf_counter(), mark(self._device)
        batch = next(self._batches)
        waited = time.perf_counter() - asked if computed is None else since(computed)
        batch = batch.to(self._device)
        return Supplied(batch, chance(batch.seeds, batch.latents.shape[1:], self._device), waited)


def mark(device: torch.device) -> torch.cuda.Event | None:
    """What happens on a GPU once it has done all that it was told so far."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def since(event: torch.cuda.Event) -> float:
    """Seconds that a GPU has had nothing to do since; 0 while it still computes, which is not waited for."""
    if not event.query():
        return 0.0
    now = torch.cuda.Event(enable_timing=True)
    now.record()
    now.synchronize()
    return event.elapsed_time(now) / 1000
