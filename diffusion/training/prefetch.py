"""Prefetching: training batches read, sent to the device and given their randomness; on a GPU one ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from diffusion.data.batch import Batch
from diffusion.utils.errors import InputError


class PrefetchedBatch(NamedTuple):
    """A batch on the device, its randomness, and for how many seconds the device waited for it with nothing to do."""

    batch: Batch
    randomness: Any
    idle_seconds: float


class DevicePrefetcher:
    """This process's batches on a device, in order.

    A GPU computes while the host goes on. The host waits for it once a step; what it has to do for the next batch, it
    does before that, in `prefetch`, so that afterwards the GPU does not wait for the host.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, draw: Callable[[Any], Any]):
        self._batches, self._device, self._draw = batches, device, draw
        self.is_asynchronous = device.type != "cpu"  # which cannot compute meanwhile
        self._next: PrefetchedBatch | InputError | None = None

    def next(self) -> PrefetchedBatch:
        """Return the next batch. Raises InputError for one that cannot be read."""
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
        return PrefetchedBatch(batch, self._draw(batch), idle_seconds)


def record_event(device: torch.device) -> torch.cuda.Event | None:
    """Record an event that a GPU reaches once it has done all its work so far; None on another device."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_idle(event: torch.cuda.Event) -> float:
    """Return the seconds that a GPU has been idle since an event; 0 while it still computes, which is not waited for."""
    if not event.query():
        return 0.0
    now = torch.cuda.Event(enable_timing=True)
    now.record()
    now.synchronize()
    return event.elapsed_time(now) / 1000
