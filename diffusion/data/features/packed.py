"""Packed features: the files of every patch of one index key, put together in HDF5 shards of some gigabytes.

`ROOT/packed/<key>/<vae_prefix>-<ssl_prefix>/` holds packed.json (packed_metadata.py), shard_<n>.hdf5 (shards.py) and
table.npy (table.py). A shard appears by one rename after it was read back and found equal, so that packing can be stopped
at any moment; names that the index gains later go to further shards.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from diffusion.data.crops import CropBox
from diffusion.data.features.npy import check_finite
from diffusion.data.features.packed_metadata import PackedMetadata, read_metadata
from diffusion.data.features.parts import PARTS, Record
from diffusion.data.features.shards import (
    Shard,
    open_shard,
    read_chunk,
    read_file_hashes,
    read_row,
    shard_dataset,
    shard_path,
)
from diffusion.data.features.table import ROW_BITS, TABLE, open_table
from diffusion.data.index.names import name_hash
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError, MissingError

# Files that one process keeps open of a key, each with 0.8 MB of memory. Of published sizes, a key has thousands of shards:
# most crops then open one, which takes 0.7 ms.
OPEN_SHARDS = 256


@dataclass
class PackedFeatures:
    """A packed folder that is read; the counterpart of LooseFeatures.

    Files are opened by the process that reads, at its first read, and never carried over a fork or a pickle.
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
            raise MissingError(f"no packed features in {self.folder}; make them with pixcell pack")
        if metadata.patch_size != self.patch_size:
            raise InputError(
                f"{self.folder} holds patches of {metadata.patch_size} pixels, expected {self.patch_size}; name another folder"
            )
        open_table(self.folder)
        self._metadata = metadata

    @property
    def prefixes(self) -> Mapping[str, str]:
        """Return the prefixes of the loose files that each part was packed from."""
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
        data, layout, width = shard.parts[part], PARTS[part], self._metadata.width(part)
        if box is None or box.side * WINDOW == self.patch_size:
            array = read_row(shard, data, row)
        else:
            array = np.empty(self._metadata.shape(part, box.side * WINDOW), dtype=np.float16)
            chunk = layout.chunk_shape(width)
            for offset, place in layout.window_places(box, self.patch_size):
                array[place] = read_chunk(shard, data, (row, *offset), chunk)
        return check_finite(f"{shard.path}, {name}", array)

    def _find(self, name: str) -> tuple[Shard, int]:
        """Return the shard and row of a patch. Raises MissingError for one that is not packed."""
        if self._owner != os.getpid():
            self._shards, self._table, self._owner = OrderedDict(), open_table(self.folder), os.getpid()
            self._known = set()
        assert self._table is not None
        hashes, places = self._table
        wanted = np.uint64(name_hash(name))
        i = int(hashes.searchsorted(wanted))
        if i == len(hashes) or hashes[i] != wanted:
            raise MissingError(f"{name} is not packed in {self.folder}; run pixcell pack for it")
        number, row = divmod(int(places[i]), 2**ROW_BITS)
        if number in self._shards:
            self._shards.move_to_end(number)
        else:
            if len(self._shards) >= _open_at_once():
                self._shards.popitem(last=False)[1].file.close()
            path = shard_path(self.folder, number)
            file = open_shard(path, self.prefixes, number in self._known)
            self._known.add(number)
            self._shards[number] = Shard(
                file, path, read_file_hashes(file, path), {part: shard_dataset(file, part) for part in self.prefixes}
            )
        shard = self._shards[number]
        if row >= len(shard.hashes) or shard.hashes[row] != wanted:  # a shard was deleted and written again
            raise InputError(f"{self.folder / TABLE} is older than {shard.path}; run pixcell pack to its end")
        return shard, row

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_shards": OrderedDict(), "_table": None, "_owner": -1}


@lru_cache(maxsize=1)
def _open_at_once() -> int:
    """Return how many shards to keep open: fewer where a process may not open many files."""
    try:
        import resource

        return max(8, min(OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
    except ImportError:  # Windows
        return 128
