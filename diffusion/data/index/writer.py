"""Writing an index of patches: names are written as they come, and a name that comes twice is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

from diffusion.data.hdf5 import HDF5Writer, create_hdf5
from diffusion.data.index.names import (
    encode_names,
    name_hash,
)
from diffusion.data.index.patch_index import NAMES_AT_ONCE, iterate_chunks, open_index, split_key
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write
from diffusion.utils.locks import file_lock


def write_index(path: Path, names_by_key: Mapping[str, Iterable[str]], previous: Path | None = None) -> dict[str, int]:
    """Write an index file atomically: a reader sees the old one or the new one.

    Names may come from generators: some thousands are in memory at a time, and eight bytes of each for the check that
    none comes twice. A key without names is left out. previous: an index whose other keys are taken over.
    Returns the number of names under each new key. Raises InputError for a name that comes twice, or when another
    process writes the same index.
    """
    with file_lock(path.with_name(f".{path.name}.lock")):
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # gigabytes of a run that was killed
            left.unlink()
        return _write_index(path, names_by_key, previous)


def _write_index(path: Path, names_by_key: Mapping[str, Iterable[str]], previous: Path | None) -> dict[str, int]:
    with atomic_write(path) as temporary, create_hdf5(temporary) as file:
        counts = {key: _write_names(file, key, names) for key, names in names_by_key.items()}
        if previous is not None:
            with open_index(previous) as old:
                for key in old.keys() - names_by_key.keys():
                    old.copy(key, file)
    return counts


def _write_names(file: HDF5Writer, key: str, names: Iterable[str]) -> int:
    split_key(key)
    remaining, hashes = iter(names), []
    data = file.create_dataset(key, shape=(0,), maxshape=(None,), chunks=(512,), dtype=h5py.string_dtype("ascii"))
    while part := encode_names(list(islice(remaining, NAMES_AT_ONCE)), key):
        data.resize(len(data) + len(part), axis=0)
        data[-len(part) :] = part
        file.check()
        hashes.append(np.array([name_hash(name) for name in part], dtype=np.uint64))
    if not hashes:
        del file[key]
        return 0
    ordered = np.concatenate(hashes)
    ordered.sort()
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: set[bytes] = set()
    for name in (
        name for part in (iterate_chunks(data) if suspects else ()) for name in part if name_hash(name) in suspects
    ):
        if name in seen:
            raise InputError(f"{name.decode('utf-8')} comes twice under {key}; a patch is listed once")
        seen.add(name)
    return len(ordered)
