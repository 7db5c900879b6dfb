"""The HDF5 index of patches: one 1-D data set of byte strings per `<dataset>_<size>`, each entry a path below ROOT/patches.

Published sizes run to 30.8 million names, so nothing here holds a whole key: names are looked up one by one.
"""

from __future__ import annotations

import logging
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import h5py
import numpy as np

from diffusion.data.hdf5 import open_hdf5
from diffusion.data.index.names import (
    are_plain,
    dataset_key,
    decode_name,
)
from diffusion.formats import DEFAULT_INDEX, METADATA_DIR, PATCHES_DIR
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import abbreviate, is_utf8, printable_name

log = logging.getLogger(__name__)
INDEX_FOLDER = Path(PATCHES_DIR, METADATA_DIR)
NAMES_AT_ONCE = 65_536


def index_path(root: Path, patch_names_file: str | Path = DEFAULT_INDEX) -> Path:
    """Return ROOT/patches/metadata/<file>; an absolute file is taken as it is."""
    return Path(root) / INDEX_FOLDER / patch_names_file


def split_key(key: str) -> tuple[str, int]:
    """Return data set and size of a key: `tcga_diagnostic_1024` is (`tcga_diagnostic`, 1024).

    Raises InputError when no size ends the key.
    """
    dataset, _, size = key.rpartition("_")
    if not dataset or not size.isdigit():
        raise InputError(f"index key {key!r}: expected <dataset>_<size>, such as tcga_diagnostic_1024")
    return dataset, int(size)


def find_keys(present: Sequence[str], names: Sequence[str], sizes: Sequence[int] | None = None) -> list[str]:
    """Return the keys of an index that names stand for: keys themselves, or data sets.

    present: the keys of the index. sizes: of a data set the first of these that it has; None: all that it has.
    Raises MissingError that lists every name that the index does not have.
    """
    keys, unknown = [], []
    for name in names:
        of_name = [key for key in present if split_key(key)[0] == name]
        wanted = of_name if sizes is None else [key for size in sizes if (key := f"{name}_{size}") in of_name][:1]
        found = [name] if name in present else wanted
        keys += found
        if not found:
            unknown.append(name if sizes is None or not of_name else f"{name} of {' or '.join(map(str, sizes))} pixels")
    if unknown:
        raise MissingError(f"--dataset: the index has no {', no '.join(unknown)}; it has {abbreviate(list(present))}")
    return list(dict.fromkeys(keys))


class PatchIndex:
    """The names under some keys of an index file, as one sequence in key order.

    The file is opened by the process that first asks for a name and never carried over a fork or a pickle,
    because HDF5 handles must not be shared between processes.
    """

    def __init__(self, path: Path, keys: Iterable[str] | None = None, size: int | None = None):
        """Take `keys`, or all of the file whose patches have `size` pixels (default: any).

        Raises MissingError when the file or a key is not there, InputError for a named key of another size, or when no
        key is left or none holds a name.
        """
        self.path = Path(path)
        self._names: list[_NameReader] = []  # under the keys; they keep their file open
        self._owner = -1
        with open_index(self.path) as file:
            self.keys = _choose_keys(self.path, _list_entries(file), keys, size)
            self.lengths = [len(names_dataset(file, key)) for key in self.keys]
        self._ends = list(accumulate(self.lengths))
        if len(self) == 0:
            raise InputError(f"{self.path}: no names under {', '.join(self.keys)}")

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, i: int) -> str:
        """Return the path, relative to ROOT/patches, of patch `i` of all keys together."""
        return self.locate(i)[1]

    def locate(self, i: int) -> tuple[int, str]:
        """Return which of `keys` patch `i` is of, and its name. Raises InputError for a name that is no path below patches/."""
        if not 0 <= i < len(self):
            raise IndexError(f"patch {i} of {len(self)} in {self.path}")
        which = bisect_right(self._ends, i)
        start = self._ends[which] - self.lengths[which]
        return which, self._open()[which].get(i - start)

    def _open(self) -> list[_NameReader]:
        if self._owner != os.getpid():
            file = open_index(self.path)
            self._names, self._owner = [_NameReader(names_dataset(file, key)) for key in self.keys], os.getpid()
        return self._names

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_names": [], "_owner": -1}


class _NameReader:
    """One name at a time from an HDF5 data set: the calls below h5py's indexing, which take a third of its time."""

    def __init__(self, data: h5py.Dataset):
        self._data, self._source = data, data.id.get_space()
        self._dtype = data.dtype
        self._one, self._kind = h5py.h5s.create_simple((1,)), h5py.h5t.py_create(self._dtype)

    def get(self, i: int) -> str:
        """Read name `i`. Raises InputError for one that cannot be read or is no path below patches/."""
        name = np.empty(1, dtype=self._dtype)
        self._source.select_hyperslab((i,), (1,))
        try:
            self._data.id.read(self._one, self._source, name, self._kind)
        except (OSError, RuntimeError) as error:
            raise _unreadable(self._data, error) from None
        return decode_name(name[0], self._data)


def open_index(path: Path) -> h5py.File:
    """Open an index for reading. Raises MissingError or, for a file that is not HDF5, InputError."""
    if not path.is_file():
        raise MissingError(
            f"no index at {path}; make one with pixcell index, or name it with --root and --index (in a config: patch_names_file)"
        )
    return open_hdf5(path)


def names_dataset(file: h5py.File, key: str) -> h5py.Dataset:
    """Return the data set of names under a key: one dimension of strings, of fixed or variable length.

    Raises InputError saying what is there instead.
    """
    found = _describe_entry(file, key)
    if found is not None:
        raise InputError(
            f"{file.filename}: {key} is {found}, expected a list of patch names: one dimension of strings, "
            "paths below patches/ in UTF-8; pixcell index writes such an index"
        )
    data = file[key]
    assert isinstance(data, h5py.Dataset)
    return data


def iterate_names(path: Path, key: str) -> Iterator[str]:
    """Yield the names under one key, in order, some thousands in memory at a time. Raises as PatchIndex.locate does."""
    with open_index(path) as file:
        data = names_dataset(file, key)
        for names in iterate_chunks(data):
            together = b"\n".join(names)
            if are_plain(together, len(names)) and not isinstance(names[0], np.bytes_):
                yield from together.decode("utf-8").split("\n")
            else:
                yield from (decode_name(name, data) for name in names)


def iterate_chunks(data: h5py.Dataset) -> Iterator[np.ndarray]:
    """Yield the names of a data set as they are stored, some thousands at a time. Raises InputError for a damaged one."""
    for start in range(0, len(data), NAMES_AT_ONCE):
        try:
            yield data[start : start + NAMES_AT_ONCE]
        except (OSError, RuntimeError) as error:
            raise _unreadable(data, error) from None


def _unreadable(data: h5py.Dataset, error: Exception) -> InputError:
    return InputError(
        f"{data.file.filename}: the names under {dataset_key(data)} cannot be read ({error}); build the index again"
    )


def index_keys(path: Path) -> list[str]:
    """Return the keys of an index, `<dataset>_<size>` with lists of names; what else lies in the file is named in the log.

    Raises as open_index does; InputError for an entry called `<dataset>_<size>` that holds no names.
    """
    with open_index(path) as file:
        kinds = {key: _describe_entry(file, key) for key in _list_entries(file)}
        named = [key for key in kinds if is_utf8(key) and re.search(r"._\d+$", key)]
        keys = [key for key in named if len(names_dataset(file, key))]
    skipped = {
        key: "without names" if key in named else kind or "strings" for key, kind in kinds.items() if key not in keys
    }
    _warn_of_other_entries(path, tuple(f"{key}, {kind}" for key, kind in skipped.items()))
    if not keys:
        raise InputError(f"{path} lists no patches: it has no <dataset>_<size> with names; make it with pixcell index")
    return keys


def _list_entries(file: h5py.File) -> list[str]:
    """List the entries of a file; names that are not UTF-8, which h5py gives as bytes, with lone surrogates."""
    try:
        return [os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in file]
    except (OSError, RuntimeError) as error:
        raise InputError(f"{file.filename} is damaged ({error}); build the index again") from None


def _describe_entry(file: h5py.File, key: str) -> str | None:
    """Say what an entry of a file is; None for a list of names."""
    if not is_utf8(key):
        return "whose name is not UTF-8"
    try:
        entry = file[key]
    except (KeyError, OSError, RuntimeError) as error:
        return f"not readable ({error})" if isinstance(error, RuntimeError) else "a link to nothing"
    if not isinstance(entry, h5py.Dataset):
        return (
            f"a {type(entry).__name__.lower()} of {len(entry)} entries" if isinstance(entry, h5py.Group) else "no data"
        )
    kind = "strings" if h5py.check_string_dtype(entry.dtype) else f"{entry.dtype} values"
    if entry.shape is None or entry.ndim != 1:
        sides = " x ".join(map(str, entry.shape or ())) or "a single one"
        return f"a data set of {kind}, {sides}"
    return None if kind == "strings" else f"a data set of {len(entry)} {kind}"


@cache
def _warn_of_other_entries(path: Path, entries: tuple[str, ...]) -> None:
    """Log once what an index holds beside its keys."""
    if entries:
        log.warning(
            "%s: left out, as no <dataset>_<size> with a list of patch names: %s",
            path,
            abbreviate([printable_name(e) for e in entries]),
        )


def _choose_keys(path: Path, present: list[str], wanted: Iterable[str] | None, size: int | None) -> list[str]:
    keys = present if wanted is None else list(wanted)
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise InputError(
            f"the key {repeated[0]} is named more than once, and its patches would count as often; name it once"
        )
    absent = [key for key in keys if key not in present]
    if absent:
        raise MissingError(f"{path} has no key {', '.join(absent)}; it has {', '.join(present) or 'none'}")
    chosen = [key for key in keys if size is None or key.endswith(f"_{size}")]
    left = [key for key in keys if key not in chosen]
    if left and wanted is not None:
        raise InputError(f"{path}: expected keys of {size} pixels, got {', '.join(left)}; leave them out")
    if not chosen:
        raise InputError(f"{path}: none of the keys {', '.join(keys) or '(none)'} holds patches of {size} pixels")
    return chosen
