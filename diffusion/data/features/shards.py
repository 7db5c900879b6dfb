"""Shards of packed features: HDF5 files of some gigabytes with the features of many patches.

A shard has a data set for each part, `latents` float16 (n, 32, S/8, S/8) with a chunk for each 256-pixel window, all its
channels (64 KiB), and `tokens` float16 (n, L, D) with a chunk for each; `names`, and `hashes` of them; and a checksum with
every chunk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from diffusion.data.features.parts import PARTS, USUAL_PARTS, Record
from diffusion.data.hdf5 import open_hdf5
from diffusion.data.index.names import name_hash
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError, MissingError

PACK_AGAIN = "if it is damaged, and the loose features are there, delete it and run pixcell pack again"
NAMES_LAYOUT = {"names": (np.dtype(object), 1), "hashes": (np.dtype(np.uint64), 1)}  # type and dimensions in a shard


class Shard(NamedTuple):
    """An open shard: its file, which must stay open, the hashes of its names, and the data set of each part."""

    file: h5py.File
    path: Path
    hashes: np.ndarray
    parts: dict[str, h5py.Dataset]


class PackedPatch(NamedTuple):
    """One patch of a shard: its name, and every part of its features."""

    name: str
    parts: Record


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of shard `number`."""
    return folder / f"shard_{number:05d}.hdf5"


def list_shards(folder: Path) -> list[int]:
    """Return the numbers of the complete shards in a folder, in order."""
    found = (re.fullmatch(r"shard_(\d+)\.hdf5", path.name) for path in folder.glob("shard_*.hdf5"))
    return sorted(int(match[1]) for match in found if match)


def open_shard(path: Path, parts: Collection[str] = USUAL_PARTS, is_known: bool = False) -> h5py.File:
    """Open a shard for reading. Raises MissingError, or InputError for a damaged file or one of another layout.

    parts: that it must hold; is_known: the layout was checked before, which takes longer than opening.
    """
    if not path.is_file():
        raise MissingError(f"no shard {path}; run pixcell pack again")
    try:
        file = open_hdf5(path, rdcc_nbytes=0)  # a chunk is a crop, and is read once
    except InputError as error:
        raise InputError(f"{error}; {PACK_AGAIN}") from None
    try:
        if not is_known:
            _check_layout(file, path, parts)
    except InputError:
        file.close()
        raise
    return file


def _check_layout(file: h5py.File, path: Path, parts: Collection[str]) -> None:
    layout = {part: (np.dtype(np.float16), 1 + len(PARTS[part].shape(WINDOW))) for part in parts} | NAMES_LAYOUT
    for name, (dtype, ndim) in layout.items():
        data = file.get(name)
        if not isinstance(data, h5py.Dataset):
            raise _unreadable(path, f"it has no data set {name}")
        if data.ndim != ndim or data.dtype != dtype:
            found = f"{data.dtype} of {data.ndim} dimensions"
            raise _unreadable(path, f"{name} is {found}, expected {dtype} of {ndim} dimensions")
    lengths = sorted({len(shard_dataset(file, name)) for name in layout})
    if len(lengths) > 1:
        raise _unreadable(path, f"its data sets have {' and '.join(map(str, lengths))} rows, expected one number")


def shard_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a data set of a shard whose layout was checked."""
    data = file[name]
    assert isinstance(data, h5py.Dataset)
    return data


def count_patches(folder: Path) -> int:
    """Return how many patches the complete shards of a folder hold."""
    return sum(len(read_hashes(folder, number)) for number in list_shards(folder))


def read_hashes(folder: Path, number: int) -> np.ndarray:
    """Read the hashes, uint64 (n,), of the names in a shard, in row order."""
    path = shard_path(folder, number)
    with open_shard(path) as file:
        return read_file_hashes(file, path)


def read_file_hashes(file: h5py.File, path: Path) -> np.ndarray:
    """Read the hashes in a shard that is open. Raises InputError for a damaged one."""
    try:
        return shard_dataset(file, "hashes")[:]
    except (OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def read_shard(path: Path, parts: Collection[str] = USUAL_PARTS) -> Iterator[PackedPatch]:
    """Yield every patch of a shard, whole, with the checksum of every chunk tested. Raises InputError for a damaged one."""
    with open_shard(path, parts) as file:
        try:
            names, hashes = shard_dataset(file, "names").asstr()[:], shard_dataset(file, "hashes")[:]
            data = {part: shard_dataset(file, part) for part in parts}
            for row, (name, hashed) in enumerate(zip(names, hashes, strict=True)):
                if name_hash(name) != int(hashed):
                    raise OSError(f"the name of row {row} is not the one that was packed")
                yield PackedPatch(name, {part: each[row] for part, each in data.items()})
        except (OSError, RuntimeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            raise _unreadable(path, error) from error


def read_row(shard: Shard, data: h5py.Dataset, row: int) -> np.ndarray:
    """Read a part of a patch, testing the checksum of every chunk."""
    try:
        return data[row]
    except (OSError, RuntimeError) as error:
        raise _unreadable(shard.path, error) from error


def read_chunk(shard: Shard, data: h5py.Dataset, offset: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Read one chunk as it lies in the file, without its checksum: half the time of a read through HDF5's filters."""
    try:
        _, content = data.id.read_direct_chunk(offset)
        return np.frombuffer(content, np.float16, math.prod(shape)).reshape(shape)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(shard.path, error) from error


def _unreadable(path: Path, reason: Exception | str) -> InputError:
    return InputError(f"{path} cannot be read ({reason}); {PACK_AGAIN}")
