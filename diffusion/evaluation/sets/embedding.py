"""Features of sets of images, computed by several processes together and cached on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.evaluation.sets.cache import (
    CachePart,
    Encoder,
    FileRecord,
    is_readable,
    load_parts,
    split_into_parts,
    write_part,
)
from diffusion.evaluation.sets.features import Features
from diffusion.evaluation.sets.image_set import DecodedImage, ImageSet, WindowDataset
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState

MAX_BATCH_BYTES = 2**25  # of the files decoded for one batch: large pictures have many windows each


@dataclass
class Timing:
    """The seconds that embedding took, in all and in the encoder, and the number of images that were not cached."""

    images: int = 0
    seconds: float = 0.0
    encoder: float = 0.0

    @property
    def encoder_share(self) -> float:
        """Return the share of the time that was spent in the encoder, 0 to 1."""
        return self.encoder / self.seconds if self.seconds else 0.0


def embed_set(
    images: ImageSet,
    embedder: PatchEmbedder,
    cache: Path,
    state: PartialState,
    batch_size: int = 32,
    workers: int = 0,
    strict: bool = False,
    timing: Timing | None = None,
) -> Features:
    """Return the features of a set, from the cache where they are there; processes share the work on those that are not.

    strict: a file that cannot be read is an error. timing: is added to. Raises InputError for an image of a size that is
    refused, and when no image can be read.
    """
    parts, mine = share_parts(images, embedder, cache, state)
    timing = timing if timing is not None else Timing()
    embed_parts(mine, images, embedder, batch_size, workers, strict, timing, quiet=not state.is_main_process)
    state.wait_for_everyone()
    return load_parts(parts, images, embedder, strict)


def share_parts(
    images: ImageSet, encoder: Encoder, cache: Path, state: PartialState
) -> tuple[list[CachePart], list[CachePart]]:
    """Return all parts of a set, and those that this process is to compute."""
    parts = list(split_into_parts(images, encoder, cache))
    missing = [part for part in parts if not is_readable(part.file)]
    state.wait_for_everyone()  # all have checked before one of them writes
    # the hash shifts the share, so that sets of a single part do not all fall to the first process
    first = (state.process_index + int(parts[0].file.stem[-8:], 16)) % state.num_processes
    return parts, missing[first :: state.num_processes]


def embed_parts(
    parts: Sequence[CachePart],
    images: ImageSet,
    embedder: PatchEmbedder,
    batch_size: int,
    workers: int,
    strict: bool,
    timing: Timing,
    quiet: bool = False,
) -> None:
    """Embed the files of some parts and write each part when it is complete. Raises InputError as `embed_set`."""
    if not parts:
        return
    started_all = time.perf_counter()
    loader = iter(
        DataLoader(
            WindowDataset([path for part in parts for path in part.paths], images.fit),
            batch_sampler=batch_within_parts(parts, batch_size),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=embedder.device.type == "cuda",
        )
    )
    total = sum(len(part.paths) for part in parts)
    with tqdm(
        total=total, desc=f"{embedder.name}: {images.folder}", unit="image", leave=False, disable=quiet
    ) as progress:
        for part in parts:
            values, files = [np.empty((0, embedder.width), np.float32)], []
            while len(files) < len(part.paths):
                windows, read = next(loader)
                for path, file in zip(part.paths[len(files) :], read, strict=False):
                    check_file(path, file, strict)
                files += read
                started = time.perf_counter()
                values += [embedder.embed(batch).cpu().numpy() for batch in windows.split(batch_size) if len(batch)]
                timing.encoder += time.perf_counter() - started
                progress.update(len(read))
            write_part(part.file, np.concatenate(values), files)
    timing.images += total
    timing.seconds += time.perf_counter() - started_all


def batch_within_parts(parts: Sequence[CachePart], size: int) -> list[list[int]]:
    """Return the numbers of files, counted over all parts, in batches: none spans two parts or has too many bytes."""
    batches: list[list[int]] = []
    number = 0
    for part in parts:
        batches.append([])
        total = 0
        for path in part.paths:
            total += path.stat().st_size
            if batches[-1] and (len(batches[-1]) == size or total > MAX_BATCH_BYTES):
                batches.append([])
                total = path.stat().st_size
            batches[-1].append(number)
            number += 1
    return batches


def collate(files: Sequence[DecodedImage]) -> tuple[torch.Tensor, list[FileRecord]]:
    """Return the windows of some files, uint8 (n, 3, 256, 256), and the result of reading each file."""
    windows = [file.windows for file in files if file.windows is not None]
    pixels = np.concatenate(windows) if windows else np.empty((0, WINDOW, WINDOW, 3), np.uint8)
    read = [
        FileRecord(0 if file.windows is None else len(file.windows), file.format, file.wrong, file.refused)
        for file in files
    ]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), read


def check_file(path: Path, file: FileRecord, strict: bool) -> None:
    """Raise InputError for an image of a size that is refused and, if strict, for one that cannot be read."""
    if file.refused:
        raise InputError(f"{path} {file.wrong}; --on-size windows scores its windows of 256, resize makes it smaller")
    if strict and file.wrong:
        raise InputError(f"{path} {file.wrong}; without --strict it would be left out and named")
