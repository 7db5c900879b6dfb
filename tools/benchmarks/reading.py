"""Reading crops for training, against loops that read complete patches.

Crops come from a set made here of random numbers, loose and packed. `published` reads a complete patch, draws all of its
posterior and cuts, as the public training code does; `full read` reads a complete patch, cuts and draws.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.startup import REPOSITORY
from benchmarks.table import Row, compare_row, rate_row
from diffusion.data.batch import PatchItem, collate
from diffusion.data.crops import crop_box
from diffusion.data.datasets.pan_cancer import PanCancerDataLowRes
from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.index.patch_index import index_path
from diffusion.data.index.writer import write_index
from diffusion.data.loader import training_loader
from diffusion.data.sampler import BatchStream, Draw
from diffusion.formats import PATCHES_DIR, SSL_PREFIX, VAE_PREFIX

KEY, WIDTH, CROP, BATCH = "set_1024", 1536, 256, 128  # the published batch of one GPU
COMPARED = (
    ("full read", "published"),
    ("partial read", "published"),
    ("packed", "published"),
    ("packed", "full read"),
)


class IOCounts(NamedTuple):
    """Bytes that a process has asked for, and those of them that came from the disk."""

    requested: int
    from_disk: int


def reading_rows(root: Path, patches: int, seconds: float, rounds: int) -> list[Row]:
    """Return rows of every way to read against the published one, for each number of workers and each cache.

    root: an empty folder, for 4 MiB a patch; seconds: of each reading with a warm cache.
    """
    make_set(root, patches)
    packer = [sys.executable, str(REPOSITORY / "tools/pack_features.py"), "--dataset_name", "set", "--root", str(root)]
    subprocess.run(packer, check=True, capture_output=True)
    loose = PanCancerDataLowRes(root, CROP, features_dir="patches")
    ways = {
        "published": Published(loose),
        "full read": FullRead(loose),
        "partial read": loose,
        "packed": PanCancerDataLowRes(root, CROP, features_dir="packed"),
    }
    rows = []
    for workers in (0, 1, 2):
        for cache in ("cold", "warm"):
            taken = [  # one way after the other, since machines slow down and speed up
                {name: read_crops(dataset, root, workers, cache, seconds) for name, dataset in ways.items()}
                for _ in range(rounds)
            ]
            speeds = {way: [each[way]["crops_per_second"] for each in taken] for way in ways}
            for way, against in COMPARED:
                what = f"{CROP} crops, {way}, {workers} workers, {cache}"
                rows.append(rate_row(what, "crops/s", speeds, against, way))
            if workers == 0 and "kib_asked" in taken[0]["packed"]:
                asked = {way: median([each[way]["kib_asked"] for each in taken]) for way in ways}
                for way in ("partial read", "packed"):
                    what = f"{CROP} crops, {way}, read of the files, {cache}"
                    rows.append(compare_row(what, "KiB a crop", asked[way], asked["published"], "published"))
    return rows


def make_set(root: Path, patches: int) -> None:
    """An index key of random patches with loose features."""
    names = [f"set/all/single_1024/slide_{i // 400:04d}/{i % 400}_0.jpeg" for i in range(patches)]
    write_index(index_path(root), {KEY: names})
    random = np.random.default_rng(0)
    moments = random.normal(size=(32, 128, 128)).astype(np.float16)
    moments[16:] = 0.01 * np.abs(moments[16:])
    for i, name in enumerate(names):
        moments[0, 0, 0] = i / 100
        write_feature(feature_path(root / PATCHES_DIR, name, VAE_PREFIX), moments)
        write_feature(feature_path(root / PATCHES_DIR, name, SSL_PREFIX), random.normal(size=(16, WIDTH)))


class FullRead:
    """Items of a data set by a loop that reads both files of a patch completely, and cuts."""

    def __init__(self, dataset: PanCancerDataLowRes):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> PatchItem:
        patch, crop = divmod(draw.index, self.dataset.crops_per_side**2)
        name = self.dataset.index.name(patch)
        folder = self.dataset.root / PATCHES_DIR
        moments, tokens = (
            torch.from_numpy(np.load(feature_path(folder, name, kind))) for kind in (VAE_PREFIX, SSL_PREFIX)
        )
        latent = self.latent(moments, crop, torch.Generator().manual_seed(draw.seed))
        return PatchItem(latent, tokens[crop : crop + 1].float(), name, crop)

    def latent(self, moments: torch.Tensor, crop: int, generator: torch.Generator) -> torch.Tensor:
        """Return the latent of a crop, drawn from the posterior of its part of the patch."""
        mean, std = moments[(slice(None), *crop_box(crop, 4, CROP).slices(32))].float().chunk(2)
        return torch.randn(mean.shape, generator=generator).mul_(std).add_(mean)


class Published(FullRead):
    """The same, but the posterior of the whole patch is drawn, in half precision, before it is cut."""

    def latent(self, moments: torch.Tensor, crop: int, generator: torch.Generator) -> torch.Tensor:
        mean, std = moments.chunk(2)
        drawn = mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return drawn[(slice(None), *crop_box(crop, 4, CROP).slices(32))].float()


def read_crops(dataset: Any, root: Path, workers: int, cache: str, seconds: float) -> dict[str, float]:
    """Read shuffled crops as training does, for some seconds (a cold cache: for one pass over a part of the crops at most)."""
    if cache == "cold":
        drop_page_cache(root)
    else:
        for path in root.rglob("*.*"):
            if path.is_file():
                path.read_bytes()
    loader = training_loader(dataset, collate, BatchStream(len(dataset), BATCH, 0), workers, pin_memory=False)
    batches = iter(loader)
    if cache == "warm":
        next(batches)  # workers start, files open
    before = read_io_counts()
    began, count = time.perf_counter(), 0
    # a quarter as many crops as there are patches, or some would be met twice, and be warm the second time
    limit = max(1, len(dataset) // 16 // 4 // BATCH) if cache == "cold" else 10**9
    for _ in islice(batches, limit):
        count += BATCH
        if cache == "warm" and time.perf_counter() - began > seconds:
            break
    figures = {"crops_per_second": count / (time.perf_counter() - began)}
    after = read_io_counts()
    if workers == 0 and before and after:  # what other processes read is counted there
        figures["kib_asked"] = (after.requested - before.requested) / count / 1024
        if cache == "cold":
            figures["kib_from_disk"] = (after.from_disk - before.from_disk) / count / 1024
    del batches, loader
    return figures


def drop_page_cache(root: Path) -> None:
    """Ask the system to drop the pages of every file, once they are on the disk."""
    for path in root.rglob("*.*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_io_counts() -> IOCounts | None:
    """Return this process's counts so far; None where the system does not count."""
    try:
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return IOCounts(int(lines["rchar"]), int(lines["read_bytes"]))
    except OSError:
        return None
