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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from diffusion.data.crops import CropBox
from diffusion.data.features.npy import check_finite
from diffusion.data.features.parts import LATENTS, PARTS, TOKENS, Record
from diffusion.data.hdf5 import open_hdf5
from diffusion.data.index.patch_index import name_hash
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import read_json

FORMAT = 1
METADATA, TABLE = "packed.json", "table.npy"
# Files that one process keeps open of a key, each with 0.8 MB of memory. Of published sizes, a key has thousands of shards:
# most crops then open one, which takes 0.7 ms.
OPEN_SHARDS = 256
ROW_BITS = 32
PACK_AGAIN = "if it is damaged, and the loose features are there, delete it and run tools/pack_features.py again"
USUAL_PARTS = (LATENTS.name, TOKENS.name)  # that every packed set has
NAMES_LAYOUT = {"names": (np.dtype(object), 1), "hashes": (np.dtype(np.uint64), 1)}  # type and dimensions in a shard


def packed_folder(folder: Path, key: str, prefixes: Mapping[str, str]) -> Path:
    """Return where the packed features of an index key lie, below ROOT/packed (or another folder named)."""
    return folder / key / "-".join(prefixes.values())


@dataclass(frozen=True)
class PackedMetadata:
    """What a packed folder holds.

    prefixes: of the loose files of each part; made_by: weights and window by prefix, as extraction notes them.
    """

    key: str
    patch_size: int
    embedding_width: int
    prefixes: dict[str, str]
    made_by: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def patch_bytes(self) -> int:
        """Bytes of one patch, all parts."""
        shapes = [PARTS[part].shape(self.patch_size, self.embedding_width) for part in self.prefixes]
        return 2 * sum(math.prod(n or 1 for n in shape) for shape in shapes)

    def to_json(self) -> dict[str, Any]:
        """Return the content of packed.json."""
        return {
            "key": self.key,
            "patch_size": self.patch_size,
            "embedding_width": self.embedding_width,
            **{PARTS[part].setting: prefix for part, prefix in self.prefixes.items()},
            "made_by": self.made_by,
            "format": FORMAT,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PackedMetadata:
        """Return what packed.json describes. Raises ValueError for keys that are missing, unknown, or of another type."""
        rest = dict(values)
        rest.pop("format", None)
        prefixes = {part.name: rest.pop(part.setting) for part in PARTS.values() if part.setting in rest}
        rest.setdefault("made_by", {})
        fields = {"key": str, "patch_size": int, "embedding_width": int, "made_by": dict}
        if missing := [*(fields.keys() - rest.keys()), *(PARTS[p].setting for p in USUAL_PARTS if p not in prefixes)]:
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        if unknown := rest.keys() - fields.keys():
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        for name, value in [*rest.items(), *((PARTS[part].setting, prefix) for part, prefix in prefixes.items())]:
            kind = fields.get(name, str)
            if type(value) is not kind or not (value or kind is dict):
                raise ValueError(f"{name} is {value!r}, expected {kind.__name__}")
        return cls(prefixes=prefixes, **rest)


def read_metadata(folder: Path) -> PackedMetadata | None:
    """Read what lies packed in a folder; None where nothing does. Raises InputError for another format or description."""
    if not (folder / METADATA).exists():
        return None
    values = read_json(folder / METADATA, "description of packed features", "pack them again")
    if values.get("format", FORMAT) != FORMAT:
        raise InputError(f"{folder} is of format {values['format']}, expected {FORMAT}; pack these features again")
    try:
        return PackedMetadata.from_json(values)
    except ValueError as error:
        raise InputError(f"{folder / METADATA} does not describe packed features ({error}); pack them again") from None


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
    _metadata: PackedMetadata = field(init=False, repr=False)

    def __post_init__(self) -> None:
        metadata = read_metadata(self.folder)
        if metadata is None:
            raise MissingError(f"no packed features in {self.folder}; make them with tools/pack_features.py")
        if metadata.patch_size != self.patch_size:
            raise InputError(
                f"{self.folder} holds patches of {metadata.patch_size} pixels, expected {self.patch_size}; name another folder"
            )
        open_table(self.folder)
        self._metadata = metadata

    @property
    def prefixes(self) -> Mapping[str, str]:
        """The prefixes of the loose files that each part was packed from."""
        return self._metadata.prefixes

    def __len__(self) -> int:
        """Return how many patches are packed."""
        return open_table(self.folder).shape[1]

    def read(self, name: str, box: CropBox | None = None) -> Record:
        """Read every part of a patch, or of a crop of it.

        Raises MissingError for a patch that is not packed, InputError for a damaged shard or value.
        """
        shard, row = self._find(name)
        return {part: self._read(shard, row, part, name, box) for part in self.prefixes}

    def read_part(self, part: str, name: str, box: CropBox | None = None) -> np.ndarray:
        """Read one part of a patch, float16, or a crop of it. Raises as read does."""
        return self._read(*self._find(name), part, name, box)

    def present(self, name: str) -> dict[str, bool]:
        """Tell which parts of a patch are packed, all or none; they are not read."""
        try:
            self._find(name)
        except MissingError:
            return dict.fromkeys(self.prefixes, False)
        return dict.fromkeys(self.prefixes, True)

    def _read(self, shard: Shard, row: int, part: str, name: str, box: CropBox | None) -> np.ndarray:
        data, layout, width = shard.parts[part], PARTS[part], self._metadata.embedding_width
        if box is None or box.side * WINDOW == self.patch_size:
            array = _read_row(shard, data, row)
        else:
            array = np.empty(layout.shape(box.side * WINDOW, width), dtype=np.float16)
            chunk = layout.chunk_shape(width)
            for offset, place in layout.window_places(box, self.patch_size):
                array[place] = _read_chunk(shard, data, (row, *offset), chunk)
        return check_finite(f"{shard.path}, {name}", array)

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
            file = open_shard(path, self.prefixes, number in self._known)
            self._known.add(number)
            self._shards[number] = Shard(file, path, _hashes(file, path), {part: file[part] for part in self.prefixes})
        shard = self._shards[number]
        if row >= len(shard.hashes) or shard.hashes[row] != wanted:  # a shard was deleted and written anew
            raise InputError(f"{self.folder / TABLE} is older than {shard.path}; run tools/pack_features.py to its end")
        return shard, row

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_shards": OrderedDict(), "_table": None, "_owner": -1}


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05d}.hdf5"


def open_shard(path: Path, parts: Collection[str] = USUAL_PARTS, is_known: bool = False) -> h5py.File:
    """Open a shard for reading. Raises MissingError, or InputError for a damaged file or one of another layout.

    parts: that it must hold; is_known: the layout was checked before, which takes longer than opening.
    """
    if not path.is_file():
        raise MissingError(f"no shard {path}; run tools/pack_features.py again")
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
    lengths = sorted({len(file[name]) for name in layout})
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


def read_shard(path: Path, parts: Collection[str] = USUAL_PARTS) -> Iterator[PackedPatch]:
    """Yield every patch of a shard, whole, with the checksum of every chunk tested. Raises InputError for a damaged one."""
    with open_shard(path, parts) as file:
        try:
            names, hashes = file["names"].asstr()[:], file["hashes"][:]
            for row, (name, hashed) in enumerate(zip(names, hashes, strict=True)):
                if name_hash(name) != int(hashed):
                    raise OSError(f"the name of row {row} is not the one that was packed")
                yield PackedPatch(name, {part: file[part][row] for part in parts})
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
