"""HDF5 files as clusters need them: read without the library's locks, and written so that a full disk ends in an error.

The HDF5 library locks files that it opens, which fails on Lustre or NFS without locks. Nobody needs these locks here:
files are written under a temporary name and renamed when they are complete. And when a write fails, the library retries
at exit with what it freed before, which ends the process by a segmentation fault: writes go through a file object that
keeps the first failure and ignores what follows, so that the library can close the file and the error is raised then.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from diffusion.utils.content import recognise_placeholder
from diffusion.utils.errors import InputError


def open_hdf5(path: Path, **options: Any) -> h5py.File:
    """Open a file for reading, without locks; options are h5py's. Raises InputError for one that is not complete HDF5."""
    try:
        return h5py.File(path, "r", locking=False, **options)
    except OSError as error:
        reason = recognise_placeholder(path) or f"is not a readable HDF5 file ({error})"
        raise InputError(f"{path} {reason}") from error


@contextlib.contextmanager
def create_hdf5(path: Path, **options: Any) -> Iterator[HDF5Writer]:
    """Create a file to write to; options are h5py's. Raises OSError at the end when the disk took less than was written."""
    with _ForgivingFile(path, "w+") as sink:
        try:
            with HDF5Writer(sink, **options) as file:
                yield file
        finally:
            if sink.error is not None:
                raise sink.error


class HDF5Writer(h5py.File):
    """An HDF5 file that is being written."""

    def __init__(self, sink: _ForgivingFile, **options: Any):
        super().__init__(sink, "w", **options)
        self._sink = sink

    def check(self) -> None:
        """Raise the OSError that a write has met. Long writers call it now and then, to end early."""
        if self._sink.error is not None:
            raise self._sink.error


class _ForgivingFile(io.FileIO):
    """A file whose writes never fail: the first error is kept, and from then on they are ignored."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        rest = memoryview(content).cast("B")
        size = len(rest)
        while self.error is None and len(rest):  # the system may take a part
            with self._record_error():
                rest = rest[super().write(rest) :]
        return size

    def truncate(self, size: int | None = None) -> int:
        with self._record_error():
            super().truncate(size)
        return size or 0

    @contextlib.contextmanager
    def _record_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
