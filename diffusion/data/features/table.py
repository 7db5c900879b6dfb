"""The table of a packed folder: table.npy, which says in which shard and row every patch is.

It is uint64 (2, n): the sorted 64-bit hashes of all names, and where each is, shard << 32 | row.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from diffusion.data.features.shards import list_shards, read_hashes
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write

TABLE = "table.npy"
ROW_BITS = 32  # of a place: the row; the bits above are the shard


def open_table(folder: Path) -> np.ndarray:
    """Open the table of a folder, mapped: a look-up touches a few pages of it, which all processes share.

    Raises InputError where there is none, or a damaged one.
    """
    if not (folder / TABLE).is_file():
        raise InputError(f"{folder} is packed in part; run pixcell pack to its end")
    try:
        table = np.load(folder / TABLE, mmap_mode="r", allow_pickle=False)
        if not isinstance(table, np.ndarray):
            raise ValueError("an archive of arrays")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder / TABLE} is damaged ({error}); run pixcell pack again") from error
    if table.dtype != np.uint64 or table.ndim != 2 or len(table) != 2:
        raise InputError(f"{folder / TABLE} is {table.dtype} {table.shape}, expected uint64 (2, n); pack again")
    return table.view(np.ndarray)  # a memmap's own indexing is slow


def write_table(folder: Path) -> int:
    """Write the table of a folder; return the number of names. Raises as build_table does."""
    table = build_table(folder)
    with atomic_write(folder / TABLE) as temporary, open(temporary, "wb") as file:
        np.save(file, table)
    return table.shape[1]


def build_table(folder: Path) -> np.ndarray:
    """Return the table, uint64 (2, n), of the shards in a folder. Takes some 40 bytes of memory a name.

    Raises InputError when two names share a hash, or one is packed twice.
    """
    parts = {number: read_hashes(folder, number) for number in list_shards(folder)}
    hashes = np.concatenate([np.empty(0, np.uint64), *parts.values()])
    rows = [(number << ROW_BITS) + np.arange(len(part), dtype=np.uint64) for number, part in parts.items()]
    places = np.concatenate([np.empty(0, np.uint64), *rows])
    order = np.argsort(hashes)
    table = np.stack([hashes[order], places[order]])
    if (table[0, 1:] == table[0, :-1]).any():
        raise InputError(f"{folder}: two packed names are one, or share a hash; delete the last shard and pack again")
    return table
