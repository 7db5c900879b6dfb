"""Data loaders: from a data set to batches in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from diffusion.data.batch import Batch
from diffusion.data.sampler import BatchStream
from diffusion.utils.errors import InputError
from diffusion.utils.memory import keep_freed_memory


def iterate_batches(loader: DataLoader) -> Iterator[Batch]:
    """Yield the loader's batches; a worker's InputError is raised as the one line it was, without torch's traceback."""
    batches = iter(loader)
    while True:
        try:
            yield next(batches)
        except InputError as error:
            raise type(error)(str(error).strip().split("InputError: ")[-1].split("MissingError: ")[-1]) from None


def init_worker(number: int) -> None:
    """Set up a worker process: keep its freed memory, and leave the process group.

    Workers allocate the same arrays for every sample, and are a tenth faster when that memory stays theirs. Signals that
    stop a run are sent to its whole process group. Workers leave it, because the trainer still needs batches until its
    step is done; they end with the trainer, however it ends.
    """
    keep_freed_memory()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def training_loader(
    dataset: Dataset,
    collate: Callable[[Sequence[Any]], Batch],
    batches: BatchStream,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader:
    """Return an endless loader of this process's batches, in the order of the stream whatever the number of workers."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # else starting it draws from the generator that training goes on with
    )
