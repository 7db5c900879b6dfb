"""Packing: the shards and the table of diffusion.data.features.packed, from loose features."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path

import h5py
import numpy as np

from diffusion.data.features.loose import LooseFeatures, moments_shape
from diffusion.data.features.packed import (
    ABOUT,
    CELLS,
    ROW_BITS,
    TABLE,
    About,
    Packed,
    hashes_of,
    read_about,
    read_shard,
    shard_path,
    shards_of,
)
from diffusion.data.hdf5 import create_hdf5
from diffusion.data.index.patch_index import name_hash, names_without
from diffusion.formats import LATENT_CHANNELS
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write


def begin(folder: Path, about: About) -> None:
    """Write what a folder will hold, and clear what a killed run left there. Raises InputError when it holds something else already."""
    before = read_about(folder)
    if before is not None and before != about:
        differing = ", ".join(k for k, v in asdict(about).items() if asdict(before)[k] != v)
        raise InputError(f"{folder} holds features that differ in {differing}; take another --out")
    for left in folder.glob(".shard_*.tmp"):  # gigabytes of a run that was killed
        left.unlink()
    with atomic_write(folder / ABOUT) as temporary:
        temporary.write_text(json.dumps(asdict(about), indent=1))


def not_packed(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Of some names those that no shard holds yet; eight bytes of memory for each that one does."""
    packed = [hashes_of(folder, number) for number in shards_of(folder)]
    return names_without(names, np.concatenate([np.empty(0, np.uint64), *packed]))


def read_patches(
    loose: LooseFeatures, names: Iterable[str], about: About, workers: int
) -> Iterator[Packed | InputError]:
    """The features of every name, in order, or what is wrong with them; `workers` threads read a few names ahead."""

    def read(name: str) -> Packed | InputError:
        try:
            patch = Packed(name, loose.moments(name), loose.tokens(name))
        except InputError as error:
            return error
        width = patch.tokens.shape[1]
        if width != about.embedding_width:
            return InputError(f"{name} has embeddings of width {width}, expected {about.embedding_width}")
        return patch

    remaining = iter(names)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(read, name) for name in islice(remaining, 2 * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(read, name) for name in islice(remaining, 1))


def write_shard(folder: Path, number: int, about: About, patches: Iterator[Packed], rows: int) -> int:
    """Write a shard of at most `rows` patches aside, read it back, compare, and put it in place; how many they were.

    No patch, no shard. Raises InputError when the disk gives back anything but what was written.
    """
    first = next(patches, None)
    if first is None:
        return 0
    path, names, digests = shard_path(folder, number), [], []
    with atomic_write(path) as temporary:
        with create_hdf5(temporary, libver=("v110", "v110")) as file:
            latents = _create(
                file, "latents", rows, moments_shape(about.patch_size), (2 * LATENT_CHANNELS, CELLS, CELLS)
            )
            tokens = _create(file, "tokens", rows, (about.tokens, about.embedding_width), (1, about.embedding_width))
            for row, patch in enumerate(chain([first], patches)):
                latents[row], tokens[row] = patch.moments, patch.tokens
                file.check()
                names.append(patch.name)
                digests.append(_digest(patch))
            for data in (latents, tokens):
                data.resize(len(names), axis=0)
            file.create_dataset("names", data=names, dtype=h5py.string_dtype())
            file.create_dataset("hashes", data=np.array([name_hash(name) for name in names], dtype=np.uint64))
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
            if hasattr(os, "posix_fadvise"):  # so that it is read from the disk, not from memory
                os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for patch, digest in zip(read_shard(temporary), digests, strict=True):
            if _digest(patch) != digest:
                raise InputError(f"{path}: {patch.name} does not read back as it was written; check the disk")
    return len(names)


def _create(file: h5py.File, name: str, rows: int, shape: tuple[int, ...], chunk: tuple[int, ...]) -> h5py.Dataset:
    """float16 (rows, *shape), in chunks with checksums; latents hardly compress, so nothing is compressed."""
    whole = (rows, *shape)
    return file.create_dataset(name, whole, np.float16, maxshape=whole, chunks=(1, *chunk), fletcher32=True)


def write_table(folder: Path) -> int:
    """Write the sorted table of where every name is; the number of names. Raises as build_table does."""
    table = build_table(folder)
    with atomic_write(folder / TABLE) as temporary, open(temporary, "wb") as file:
        np.save(file, table)
    return table.shape[1]


def build_table(folder: Path) -> np.ndarray:
    """uint64 (2, n): where every name of the shards is, by their sorted hashes. Takes some 40 bytes of memory a name.

    Raises InputError when two names share a hash, or one is packed twice.
    """
    parts = {number: hashes_of(folder, number) for number in shards_of(folder)}
    hashes = np.concatenate([np.empty(0, np.uint64), *parts.values()])
    rows = [(number << ROW_BITS) + np.arange(len(part), dtype=np.uint64) for number, part in parts.items()]
    places = np.concatenate([np.empty(0, np.uint64), *rows])
    order = np.argsort(hashes)
    table = np.stack([hashes[order], places[order]])
    if (table[0, 1:] == table[0, :-1]).any():
        raise InputError(f"{folder}: two packed names are one, or share a hash; delete the last shard and pack again")
    return table


def _digest(patch: Packed) -> bytes:
    digest = hashlib.blake2b(patch.name.encode("utf-8"), digest_size=16)
    digest.update(np.ascontiguousarray(patch.moments))
    digest.update(np.ascontiguousarray(patch.tokens))
    return digest.digest()
