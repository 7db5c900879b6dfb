"""Training batches on their way to the network: read, sent to the device, given their chance; on a GPU one ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from diffusion.data.batch import PatchBatch
from diffusion.engine.losses import Chance, chance
from diffusion.errors import InputError


class Supplied(NamedTuple):
    """A batch on the device, what is random about it, and for how many seconds at most the device waited for it."""

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
        self._next: Supplied | InputError | None = None

    def take(self) -> Supplied:
        """The next batch. Raises InputError for one that cannot be read."""
        following, self._next = self._next, None
        if isinstance(following, InputError):
            raise following
        return following or self._prepare()

    def look_ahead(self) -> None:
        """Prepare the next batch while the device computes; on a CPU, which cannot do both, leave it."""
        if self._device.type == "cpu" or self._next is not None:
            return
        try:
            self._next = self._prepare()
        except InputError as error:  # is of the next step: this one is sound, and may be saved
            self._next = error

    def _prepare(self) -> Supplied:
        asked = time.perf_counter()
        batch = next(self._batches)
        waited = 0.0 if self._is_computing() else time.perf_counter() - asked
        batch = batch.to(self._device)
        return Supplied(batch, chance(batch.seeds, batch.latents.shape[1:], self._device), waited)

    def _is_computing(self) -> bool:
        return self._device.type == "cuda" and not torch.cuda.current_stream(self._device).query()
