"""From a data set to batches in memory."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, Dataset

from diffusion.data.batch import collate
from diffusion.data.sampler import BatchStream


def training_loader(dataset: Dataset, batches: BatchStream, num_workers: int, pin_memory: bool) -> DataLoader:
    """An endless loader of this process's batches, in the order of the stream whatever the number of workers."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # else starting it draws from the generator that training goes on with
    )
