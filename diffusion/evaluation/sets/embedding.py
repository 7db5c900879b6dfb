"""Features of sets of images, computed by processes together and kept on the disk."""

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
from diffusion.evaluation.sets.cache import CachePart, FileRecord, is_readable, load_parts, split_into_parts, write_part
from diffusion.evaluation.sets.features import Features
from diffusion.evaluation.sets.images import DecodedImage, ImageSet, WindowDataset
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState

MAX_BATCH_BYTES = 2**25  # bytes of files that are decoded for one batch: large pictures have many windows each


@dataclass
class Timing:
    """What embedding took: seconds in all and in the encoder, of so many images that were not on the disk yet."""

    images: int = 0
    seconds: float = 0.0
    encoder: float = 0.0

    @property
    def encoder_share(self) -> float:
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
    """The features of a set, from the disk where they are there; processes share the parts that are not.

    strict: a file that cannot be read is an error. Raises InputError for one of a size that was not asked for, and when
    there is none that can be read.
    """
    parts = list(split_into_parts(images, embedder, cache))
    missing = [part for part in parts if not is_readable(part.file)]
    state.wait_for_everyone()  # all have looked before one of them writes
    # sets of one part are not all the first process's
    first = (state.process_index + int(parts[0].file.stem[-8:], 16)) % state.num_processes
    mine = missing[first :: state.num_processes]
    timing = timing if timing is not None else Timing()
    embed_parts(mine, images, embedder, batch_size, workers, strict, timing, quiet=not state.is_main_process)
    state.wait_for_everyone()
    return load_parts(parts, images, embedder, strict)


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
    """Embed the files of some parts and write each part when it is whole. Raises InputError as `embed_set`."""
    if not parts:
        return
    begun = time.perf_counter()
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
                asked = time.perf_counter()
                values += [embedder.embed(some).cpu().numpy() for some in windows.split(batch_size) if len(some)]
                timing.encoder += time.perf_counter() - asked
                progress.update(len(read))
            write_part(part.file, np.concatenate(values), files)
    timing.images += total
    timing.seconds += time.perf_counter() - begun


def batch_within_parts(parts: Sequence[CachePart], size: int) -> list[list[int]]:
    """Numbers of files, over all parts, in batches of which none is of two parts, nor of too many bytes."""
    batches: list[list[int]] = []
    number = 0
    for part in parts:
        batches.append([])
        held = 0
        for path in part.paths:
            held += path.stat().st_size
            if batches[-1] and (len(batches[-1]) == size or held > MAX_BATCH_BYTES):
                batches.append([])
                held = path.stat().st_size
            batches[-1].append(number)
            number += 1
    return batches


def collate(files: Sequence[DecodedImage]) -> tuple[torch.Tensor, list[FileRecord]]:
    """The windows of some files, uint8 (n, 3, 256, 256), and what became of each."""
    there = [file.windows for file in files if file.windows is not None]
    pixels = np.concatenate(there) if there else np.empty((0, WINDOW, WINDOW, 3), np.uint8)
    read = [
        FileRecord(0 if file.windows is None else len(file.windows), file.format, file.wrong, file.refused)
        for file in files
    ]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), read


def check_file(path: Path, file: FileRecord, strict: bool) -> None:
    if file.refused:
        raise InputError(f"{path} {file.wrong}; --on_size windows scores its windows of 256, resize makes it smaller")
    if strict and file.wrong:
        raise InputError(f"{path} {file.wrong}; without --strict it would be left out and named")
