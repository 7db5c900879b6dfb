"""Index files as others write them."""

from __future__ import annotations

import io

import h5py

NAMES = [f"set/a/single_256/slide/{i}_0.jpeg" for i in range(3)]
ENCODED = [name.encode() for name in NAMES]


def hdf5_bytes(**entries) -> bytes:
    """A file with these entries; dicts are arguments of create_dataset."""
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        for name, entry in entries.items():
            if isinstance(entry, dict):
                content.create_dataset(name, **entry)
            else:
                content[name] = entry
    return file.getvalue()
