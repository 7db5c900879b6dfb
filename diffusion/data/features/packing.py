"""Packing: the shards of a packed folder, written from loose features."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from diffusion.data.features.loose import read_made_by
from diffusion.data.features.packed_metadata import METADATA, PackedMetadata, read_metadata
from diffusion.data.features.parts import MASK, PARTS, TOKENS, Part
from diffusion.data.features.shards import (
    PackedPatch,
    count_patches,
    list_shards,
    read_hashes,
    read_shard,
    shard_path,
)
from diffusion.data.features.store import FeatureStore, probe_names
from diffusion.data.features.table import write_table
from diffusion.data.hdf5 import create_hdf5
from diffusion.data.index.names import exclude_names, name_hash
from diffusion.data.index.patch_index import PatchIndex, iterate_names
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write


@dataclass(frozen=True)
class PackedCount:
    """What lies packed in a folder now: patches, shards, and patches that are new; left_out: whose features are missing or bad."""

    total: int
    shards: int
    new: int
    left_out: int


def pack_key(
    folder: Path, index: PatchIndex, loose: FeatureStore, patch_size: int, shard_bytes: float, workers: int, skip: bool
) -> PackedCount:
    """Pack what is not packed yet of an index of one key, with a bar on the terminal.

    shard_bytes: of a shard at most; workers: threads that read ahead. skip: leave a patch of bad features out, and name it on stderr.
    Raises InputError for such a patch otherwise, and as init_folder and write_shard do.
    """
    (key,) = index.keys
    noted = read_made_by(loose.folder, key)
    prefixes = dict(loose.prefixes)
    made_by = {prefix: noted[prefix] for prefix in prefixes.values() if prefix in noted}
    probed = probe_names(index, 0)
    widths = {part.name: find_width(loose, part, probed) for part in (TOKENS, MASK) if part.name in prefixes}
    metadata = PackedMetadata(
        key, patch_size, widths[TOKENS.name], prefixes, made_by, mask_channels=widths.get(MASK.name, 1)
    )
    init_folder(folder, metadata)
    rows = max(1, int(shard_bytes / metadata.patch_bytes))
    there = count_patches(folder)
    bar = tqdm(total=len(index), initial=there, unit="patch", desc=key)
    left_out = 0

    def keep_readable(patches: Iterable[PackedPatch | InputError]) -> Iterator[PackedPatch]:
        nonlocal left_out
        for patch in patches:
            bar.update()
            if isinstance(patch, PackedPatch):
                yield patch
            elif skip:
                left_out += 1
                tqdm.write(f"left out: {patch}", file=sys.stderr)
            else:
                raise patch

    names = missing_names(folder, iterate_names(index.path, key))
    number = max(list_shards(folder), default=-1) + 1
    # closed here, not by the garbage collector: that may run in a thread being started, which the reading threads wait for
    with bar, closing(read_patches(loose, names, metadata, workers)) as read:
        patches = keep_readable(read)
        while write_shard(folder, number, metadata, islice(patches, rows), rows):
            number += 1
    total = write_table(folder)
    return PackedCount(total, number, total - there, left_out)


def find_width(features: FeatureStore, part: Part, names: list[str]) -> int:
    """Return the length that may be any of a part, of the first patch whose part is readable. Raises InputError when none is."""
    failure = InputError("no patch to pack")
    for name in names:
        try:
            return part.width_of(features.read_part(part.name, name)) or 0
        except InputError as error:
            failure = error
    raise failure


def init_folder(folder: Path, metadata: PackedMetadata) -> None:
    """Write the metadata of a folder, and remove what a killed run left there.

    Raises InputError when it holds other features already.
    """
    before = read_metadata(folder)
    if before is not None and before != metadata:
        had = before.to_json()
        differing = ", ".join(name for name, value in metadata.to_json().items() if had.get(name) != value)
        raise InputError(f"{folder} holds features that differ in {differing}; take another --out")
    for left in folder.glob(".shard_*.tmp"):  # gigabytes of a run that was killed
        left.unlink()
    with atomic_write(folder / METADATA) as temporary:
        temporary.write_text(json.dumps(metadata.to_json(), indent=1))


def missing_names(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield the names that no shard holds yet; takes eight bytes of memory for each packed name."""
    packed = [read_hashes(folder, number) for number in list_shards(folder)]
    return exclude_names(names, np.concatenate([np.empty(0, np.uint64), *packed]))


def read_patches(
    features: FeatureStore, names: Iterable[str], metadata: PackedMetadata, workers: int
) -> Generator[PackedPatch | InputError]:
    """Yield the features of every name, in order, or the error of reading them; `workers` threads read names ahead."""

    def read(name: str) -> PackedPatch | InputError:
        try:
            parts = features.read(name)
        except InputError as error:
            return error
        for part, array in parts.items():
            if array.shape != metadata.shape(part, metadata.patch_size):
                found, expected = PARTS[part].width_of(array), metadata.width(part)
                return InputError(f"{name} has {PARTS[part].label} of width {found}, expected {expected}")
        return PackedPatch(name, parts)

    remaining = iter(names)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(read, name) for name in islice(remaining, 2 * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(read, name) for name in islice(remaining, 1))


def write_shard(folder: Path, number: int, metadata: PackedMetadata, patches: Iterator[PackedPatch], rows: int) -> int:
    """Write a shard of at most `rows` patches atomically, once it was read back and compared; return how many they were.

    Without patches no shard is written. Raises InputError when the disk gives back anything but what was written.
    """
    first = next(patches, None)
    if first is None:
        return 0
    path, names, digests = shard_path(folder, number), [], []
    with atomic_write(path) as temporary:
        with create_hdf5(temporary, libver=("v110", "v110")) as file:
            data = {part: _create(file, PARTS[part], rows, metadata) for part in metadata.prefixes}
            for row, patch in enumerate(chain([first], patches)):
                for part, array in patch.parts.items():
                    data[part][row] = array
                file.check()
                names.append(patch.name)
                digests.append(_digest(patch))
            for each in data.values():
                each.resize(len(names), axis=0)
            file.create_dataset("names", data=names, dtype=h5py.string_dtype())
            file.create_dataset("hashes", data=np.array([name_hash(name) for name in names], dtype=np.uint64))
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
            if hasattr(os, "posix_fadvise"):  # so that it is read from the disk, not from memory
                os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for patch, digest in zip(read_shard(temporary, metadata.prefixes), digests, strict=True):
            if _digest(patch) != digest:
                raise InputError(f"{path}: {patch.name} does not read back as it was written; check the disk")
    return len(names)


def _create(file: h5py.File, part: Part, rows: int, metadata: PackedMetadata) -> h5py.Dataset:
    """Create the data set of a part, float16 (rows, ...), in chunks of a window with checksums.

    Latents hardly compress, so nothing is compressed.
    """
    shape = (rows, *metadata.shape(part.name, metadata.patch_size))
    chunks = (1, *part.chunk_shape(metadata.width(part.name)))
    return file.create_dataset(part.name, shape, np.float16, maxshape=shape, chunks=chunks, fletcher32=True)


def _digest(patch: PackedPatch) -> bytes:
    digest = hashlib.blake2b(patch.name.encode("utf-8"), digest_size=16)
    for array in patch.parts.values():
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
