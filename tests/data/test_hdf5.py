"""HDF5 files that are opened without locks."""

from __future__ import annotations

import fcntl

import h5py
import pytest

from diffusion.data.hdf5 import create_hdf5, open_hdf5
from diffusion.utils.errors import InputError


def test_files_open_without_locks(tmp_path):
    """The library's own lock would be refused while another holds one, and fails where a disk has none."""
    path = tmp_path / "a.hdf5"
    with create_hdf5(path) as file:
        file["numbers"] = [1, 2, 3]
    with open(path, "rb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        with open_hdf5(path) as file:
            assert list(file["numbers"]) == [1, 2, 3]
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r", locking=True)


def test_files_that_are_no_hdf5_are_refused(tmp_path):
    (tmp_path / "text.hdf5").write_text("no index")
    with pytest.raises(InputError, match="not a readable HDF5"):
        open_hdf5(tmp_path / "text.hdf5")
