"""Names of patches: which are paths below ROOT/patches, how they are stored, and their hashes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator

import h5py
import numpy as np

from diffusion.utils.errors import InputError
from diffusion.utils.text import is_utf8, printable_name

UNUSUAL_BYTES = bytes({*range(32), 92} - {10})  # control characters but the line end, and the backslash


def name_fault(name: str) -> str | None:
    """Say why a name is no path below patches/; None for one that is."""
    if not name or name[0] == "/" or (".." in name and ".." in name.split("/")):
        return "leads out of patches/" if name else "is empty"
    if not name.isprintable() and any(ord(character) < 32 for character in name):
        return "has a line end or another control character"
    if "\\" in name and "/" not in name:
        return "has the separators of Windows"
    return None


def decode_name(stored: bytes, data: h5py.Dataset) -> str:
    """Check and decode a name as it is stored. Raises InputError for one that is no path below patches/."""
    try:
        fixed_length = isinstance(stored, np.bytes_)  # which Fortran pads with spaces
        name = (stored.rstrip(b" ") if fixed_length else stored).decode("utf-8")
        fault = name_fault(name)
    except UnicodeDecodeError:
        name, fault = "", "is not UTF-8"
    if fault is None:
        return name
    raise InputError(
        f"{data.file.filename}: the name {quote_name(os.fsdecode(stored))} under {dataset_key(data)} {fault}; expected a path below "
        "patches/, such as mine/breast/single_1024/slide/3_4.jpeg: rename what is called so, and build the index again"
    )


def dataset_key(data: h5py.Dataset) -> str:
    """Return the name of a data set that lies at the top of its file."""
    return (data.name or "/")[1:]


def encode_names(names: list[str], key: str) -> list[bytes]:
    """Encode names to be stored. Raises InputError for one that is no path below patches/."""
    together = "\n".join(names).encode("utf-8", "surrogateescape")
    if names and are_plain(together, len(names)):
        return together.split(b"\n")
    for name in names:
        fault = name_fault(name) or (None if is_utf8(name) else "is not UTF-8")
        if fault is not None:
            raise InputError(f"{key}: the name {quote_name(name)} {fault}; expected a path below patches/ in UTF-8")
    return [name.encode("utf-8") for name in names]


def are_plain(together: bytes, count: int) -> bool:
    """Tell whether `count` names, joined by line ends, are such that none needs a closer look: thousands of them at once."""
    return (
        together.isascii()
        and together.count(b"\n") == count - 1
        and not any(part in together for part in (b"..", b"\n/", b"\n\n"))
        and not together.startswith((b"/", b"\n"))
        and not together.endswith(b"\n")
        and len(together.translate(None, UNUSUAL_BYTES)) == len(together) > 0
    )


def quote_name(name: str) -> str:
    """Quote a name for a message, with control characters and bytes that are not UTF-8 as escapes."""
    return "'" + re.sub(r"[\x00-\x1f\x7f]", lambda match: ascii(match[0])[1:-1], printable_name(name)) + "'"


def name_hash(name: str | bytes) -> int:
    """Return a 64-bit hash of a patch's name; among 30 million names two share one with a chance of 2 in 100,000."""
    encoded = name.encode("utf-8") if isinstance(name, str) else name
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def exclude_names(names: Iterable[str], hashes: np.ndarray) -> Iterator[str]:
    """Yield the names whose hashes are none of these (uint64, in any order)."""
    ordered = np.sort(hashes)
    for name in names:
        wanted = np.uint64(name_hash(name))
        i = int(ordered.searchsorted(wanted))
        if i == len(ordered) or ordered[i] != wanted:
            yield name


def unique_names(names: Iterable[str]) -> Iterator[str]:
    """Yield every name once; takes some tens of bytes of memory for each."""
    seen: set[int] = set()
    for name in names:
        if (hashed := name_hash(name)) not in seen:
            seen.add(hashed)
            yield name
