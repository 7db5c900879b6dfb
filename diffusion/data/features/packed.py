"""Packed features: the two files of every patch of one index key, put together in HDF5 shards of some gigabytes.

`ROOT/packed/<key>/<vae_prefix>-<ssl_prefix>/` holds
  packed.json            what is packed: key, patch size, prefixes, format
  shard_<n>.hdf5         latents float16 (n, 32, S/8, S/8), a chunk for each 256-pixel crop, all its channels (64 KiB);
                         tokens float16 (n, L, D), a chunk for each; names; a checksum with every chunk
  table.npy              uint64 (2, n): the sorted 64-bit hashes of all names, and where each is: shard << 32 | row
A shard appears by one rename after it was read back and found equal, so that packing can be stopped at any moment; names
that the index gains later go to further shards.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from diffusion.data.crops import tokens_per_image
from diffusion.data.features.loose import EVERYTHING, check_finite, moments_shape
from diffusion.data.hdf5 import open_hdf5
from diffusion.data.index.patch_index import name_hash
from diffusion.formats import LATENT_CHANNELS, LATENT_FACTOR, WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import read_json

FORMAT = 1
ABOUT, TABLE = "packed.json", "table.npy"
CELLS = WINDOW // LATENT_FACTOR  # latent cells a side of a chunk
# Files that one process keeps open of a key, each with 0.8 MB of memory. Of published sizes, a key has thousands of shards:
# most crops then open one, which takes 0.7 ms.
OPEN_SHARDS = 256
ROW_BITS = 32
PACK_AGAIN = "if it is damaged, and the loose features are there, delete it and run tools/pack_features.py again"
LAYOUT = {  # of a shard: type and dimensions of each data set
    "latents": (np.dtype(np.float16), 4),
    "tokens": (np.dtype(np.float16), 3),
    "names": (np.dtype(object), 1),
    "hashes": (np.dtype(np.uint64), 1),
}


def packed_folder(folder: Path, key: str, vae_prefix: str, ssl_prefix: str) -> Path:
    """Return where the packed features of an index key lie, below ROOT/packed (or another folder named)."""
    return folder / key / f"{vae_prefix}-{ssl_prefix}"


@dataclass(frozen=True)
class About:
    """What a packed folder holds."""

    key: str
    patch_size: int
    embedding_width: int
    vae_prefix: str
    ssl_prefix: str
    made_by: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # weights and window, by prefix, as extraction notes
    format: int = FORMAT

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch, latents and tokens."""
        return 2 * (int(np.prod(moments_shape(self.patch_size))) + self.tokens * self.embedding_width)

    @property
    def tokens(self) -> int:
        return tokens_per_image(self.patch_size)


def read_about(folder: Path) -> About | None:
    """Read what lies packed in a folder; None where nothing does. Raises InputError for another format or description."""
    if not (folder / ABOUT).exists():
        return None
    values = read_json(folder / ABOUT, "description of packed features", "pack them again")
    if values.get("format", FORMAT) != FORMAT:
        raise InputError(f"{folder} is of format {values['format']}, expected {FORMAT}; pack these features again")
    try:
        about = About(**values)
    except TypeError as error:
        raise InputError(f"{folder / ABOUT} does not describe packed features ({error}); pack them again") from None
    for name, kind in {
        "key": str,
        "patch_size": int,
        "embedding_width": int,
        "vae_prefix": str,
        "ssl_prefix": str,
    }.items():
        value = getattr(about, name)
        if type(value) is not kind or not value:
            raise InputError(
                f"{folder / ABOUT}: {name} is {value!r}, expected {kind.__name__}; pack these features again"
            )
    return about


class Shard(NamedTuple):
    """An open shard: its file, which must stay open, the hashes of its names, and the data sets in it."""

    file: h5py.File
    path: Path
    hashes: np.ndarray
    latents: h5py.Dataset
    tokens: h5py.Dataset


class Packed(NamedTuple):
    """The features of one patch: moments (32, S/8, S/8), tokens (L, D), float16 both."""

    name: str
    moments: np.ndarray
    tokens: np.ndarray


@dataclass
class PackedFeatures:
    """Reads a packed folder; the counterpart of LooseFeatures.

    Files are opened by the process that reads, at its first look, and never carried over a fork or a pickle.
    """

    folder: Path
    patch_size: int
    _shards: OrderedDict[int, Shard] = field(default_factory=OrderedDict, repr=False)
    _known: set[int] = field(default_factory=set, repr=False)  # shards whose layout was checked
    _table: np.ndarray | None = field(default=None, repr=False)
    _owner: int = field(default=-1, repr=False)
    _width: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        about = read_about(self.folder)
        if about is None:
            raise MissingError(f"no packed features in {self.folder}; make them with tools/pack_features.py")
        if about.patch_size != self.patch_size:
            raise InputError(
                f"{self.folder} holds patches of {about.patch_size} pixels, expected {self.patch_size}; name another folder"
            )
        open_table(self.folder)
        self._width = about.embedding_width

    def __len__(self) -> int:
        """How many patches are packed."""
        return open_table(self.folder).shape[1]

    def moments(self, name: str, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> np.ndarray:
        """Posterior mean and std, float16 (32, h, w), of a part of a patch made of whole 256-pixel windows.

        Raises MissingError for a patch that is not packed, InputError for a damaged shard or value.
        """
        side = self.patch_size // LATENT_FACTOR
        (top, bottom, _), (left, right, _) = rows.indices(side), columns.indices(side)
        shard, row = self._find(name)
        if (bottom - top, right - left) == (side, side):
            return check_finite(f"{shard.path}, {name}", _read_row(shard, shard.latents, row))
        channels = 2 * LATENT_CHANNELS
        part = np.empty((channels, bottom - top, right - left), dtype=np.float16)
        for y in range(top, bottom, CELLS):
            for x in range(left, right, CELLS):
                chunk = _read_chunk(shard, shard.latents, (row, 0, y, x), (channels, CELLS, CELLS))
                part[:, y - top : y - top + CELLS, x - left : x - left + CELLS] = chunk
        return check_finite(f"{shard.path}, {name}", part)

    def tokens(self, name: str, which: Sequence[int] | None = None) -> np.ndarray:
        """Embeddings, float16 (L, D), of some windows of a patch, or all. Raises as moments does."""
        shard, row = self._find(name)
        if which is None:
            return check_finite(f"{shard.path}, {name}", _read_row(shard, shard.tokens, row))
        tokens = np.empty((len(which), self._width), dtype=np.float16)
        for token, i in zip(tokens, which, strict=True):
            token[:] = _read_chunk(shard, shard.tokens, (row, i, 0), (self._width,))
        return check_finite(f"{shard.path}, {name}", tokens)

    def present(self, name: str) -> tuple[bool, bool]:
        """Whether a patch's latents and embeddings are packed; they are not read."""
        try:
            self._find(name)
        except MissingError:
            return False, False
        return True, True

    def _find(self, name: str) -> tuple[Shard, int]:
        """The shard and row of a patch."""
        if self._owner != os.getpid():
            self._shards, self._table, self._owner = OrderedDict(), open_table(self.folder), os.getpid()
            self._known = set()
        hashes, places = self._table
        wanted = np.uint64(name_hash(name))
        i = int(hashes.searchsorted(wanted))
        if i == len(hashes) or hashes[i] != wanted:
            raise MissingError(f"{name} is not packed in {self.folder}; run tools/pack_features.py for it")
        number, row = divmod(int(places[i]), 2**ROW_BITS)
        if number in self._shards:
            self._shards.move_to_end(number)
        else:
            if len(self._shards) >= _open_at_once():
                self._shards.popitem(last=False)[1].file.close()
            path = shard_path(self.folder, number)
            file = open_shard(path, number in self._known)
            self._known.add(number)
            self._shards[number] = Shard(file, path, _hashes(file, path), file["latents"], file["tokens"])
        shard = self._shards[number]
        if row >= len(shard.hashes) or shard.hashes[row] != wanted:  # a shard was deleted and written anew
            raise InputError(f"{self.folder / TABLE} is older than {shard.path}; run tools/pack_features.py to its end")
        return shard, row

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_shards": OrderedDict(), "_table": None, "_owner": -1}


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05d}.hdf5"


def open_shard(path: Path, is_known: bool = False) -> h5py.File:
    """Open a shard for reading. Raises MissingError, or InputError for a damaged file or one of another layout.

    is_known: the layout was checked before, which takes longer than opening.
    """
    if not path.is_file():
        raise MissingError(f"no shard {path}; run tools/pack_features.py again")
    try:
        file = open_hdf5(path, rdcc_nbytes=0)  # a chunk is a crop, and is read once
    except InputError as error:
        raise InputError(f"{error}; {PACK_AGAIN}") from None
    try:
        if not is_known:
            _check_layout(file, path)
    except InputError:
        file.close()
        raise
    return file


def _check_layout(file: h5py.File, path: Path) -> None:
    for name, (dtype, ndim) in LAYOUT.items():
        data = file.get(name)
        if not isinstance(data, h5py.Dataset):
            raise _unreadable(path, f"it has no data set {name}")
        if data.ndim != ndim or data.dtype != dtype:
            found = f"{data.dtype} of {data.ndim} dimensions"
            raise _unreadable(path, f"{name} is {found}, expected {dtype} of {ndim} dimensions")
    lengths = sorted({len(file[name]) for name in LAYOUT})
    if len(lengths) > 1:
        raise _unreadable(path, f"its data sets have {' and '.join(map(str, lengths))} rows, expected one number")


def shards_of(folder: Path) -> list[int]:
    """List the numbers of the whole shards in a folder, in order."""
    found = (re.fullmatch(r"shard_(\d+)\.hdf5", path.name) for path in folder.glob("shard_*.hdf5"))
    return sorted(int(match[1]) for match in found if match)


def count(folder: Path) -> int:
    """How many patches the whole shards of a folder hold."""
    return sum(len(hashes_of(folder, number)) for number in shards_of(folder))


def hashes_of(folder: Path, number: int) -> np.ndarray:
    """The hashes, uint64 (n,), of the names in a shard, in row order."""
    path = shard_path(folder, number)
    with open_shard(path) as file:
        return _hashes(file, path)


def _hashes(file: h5py.File, path: Path) -> np.ndarray:
    try:
        return file["hashes"][:]
    except (OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def read_shard(path: Path) -> Iterator[Packed]:
    """Yield every patch of a shard, whole, with the checksum of every chunk tested. Raises InputError for a damaged one."""
    with open_shard(path) as file:
        try:
            names, hashes = file["names"].asstr()[:], file["hashes"][:]
            for row, (name, hashed) in enumerate(zip(names, hashes, strict=True)):
                if name_hash(name) != int(hashed):
                    raise OSError(f"the name of row {row} is not the one that was packed")
                yield Packed(name, file["latents"][row], file["tokens"][row])
        except (OSError, RuntimeError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            raise _unreadable(path, error) from error


def open_table(folder: Path) -> np.ndarray:
    """Open the table, mapped: a look-up touches a few pages of it, which all processes share. Raises InputError without one."""
    if not (folder / TABLE).is_file():
        raise InputError(f"{folder} is packed in part; run tools/pack_features.py to its end")
    try:
        table = np.load(folder / TABLE, mmap_mode="r", allow_pickle=False)
        if not isinstance(table, np.ndarray):
            raise ValueError("an archive of arrays")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder / TABLE} is damaged ({error}); run tools/pack_features.py again") from error
    if table.dtype != np.uint64 or table.ndim != 2 or len(table) != 2:
        raise InputError(f"{folder / TABLE} is {table.dtype} {table.shape}, expected uint64 (2, n); pack again")
    return table.view(np.ndarray)  # a memmap's own indexing is slow


def _read_row(shard: Shard, data: h5py.Dataset, row: int) -> np.ndarray:
    """All of a patch, the checksum of every chunk tested."""
    try:
        return data[row]
    except (OSError, RuntimeError) as error:
        raise _unreadable(shard.path, error) from error


def _read_chunk(shard: Shard, data: h5py.Dataset, offset: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """One chunk as it lies in the file, without its checksum: half the time of a read through HDF5's filters."""
    try:
        _, content = data.id.read_direct_chunk(offset)
        return np.frombuffer(content, np.float16, math.prod(shape)).reshape(shape)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(shard.path, error) from error


def _unreadable(path: Path, reason: Exception | str) -> InputError:
    return InputError(f"{path} cannot be read ({reason}); {PACK_AGAIN}")


@lru_cache(maxsize=1)
def _open_at_once() -> int:
    """How many shards to keep open: fewer where a process may not open many files."""
    try:
        import resource

        return max(8, min(OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
    except ImportError:  # Windows
        return 128
