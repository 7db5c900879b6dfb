"""Atomic writing: a reader sees the old file or the new one, complete, whatever stops the writer."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusion.utils.errors import InputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WINDOWS_DISK_FULL = 112  # ERROR_DISK_FULL
PROBE_BYTES = 2**16  # bytes that a disk must take to count as not full


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it is renamed to `path` when the block ends, removed when it fails.

    Raises OSError with the system's own words when the disk is full, whatever the library that writes makes of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _share_rights(temporary)
        os.replace(temporary, path)
    except Exception as error:
        elsewhere = isinstance(error, OSError) and error.filename not in (None, str(temporary))
        full = None if elsewhere or isinstance(error, InputError) else _disk_full(error, path.parent)
        if full is not None:
            raise OSError(full, os.strerror(full), str(path)) from error
        if isinstance(error, OSError) and error.filename == str(temporary):  # a name that the user has never seen
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _share_rights(written: Path) -> None:
    """Give a file, or those in a folder, the rights that new files have: safetensors lets only its owner read what it writes."""
    mask = os.umask(0)
    os.umask(mask)
    for path in written.rglob("*") if written.is_dir() else [written]:
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o077 == 0:
            path.chmod(path.stat().st_mode | (0o066 & ~mask))


def _disk_full(error: Exception, folder: Path) -> int | None:
    """Return the error number when a failed write met a full disk; None for other failures.

    Many libraries raise errors of their own. safetensors has the number in its message; after torch.save, NumPy and Pillow,
    whose unfinished file still fills the disk, a few more bytes tell.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = errno.ENOSPC if os.name == "nt" and match[1] == str(WINDOWS_DISK_FULL) else int(match[1])
    if number is not None:
        return number if number in DISK_FULL else None
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as refused:
        return refused.errno if refused.errno in DISK_FULL else None
    return None


def check_writable(folder: Path) -> None:
    """Check before hours of work that a folder can be made and written to. Raises InputError."""
    absolute = folder.absolute()
    nearest = next((place for place in (absolute, *absolute.parents) if os.path.lexists(place)), None)
    if nearest is None:
        raise InputError(f"{folder}: there is no {absolute.anchor}; name another folder")
    if not nearest.is_dir():
        kind = "a file" if nearest.exists() else "a link to nothing"
        raise InputError(f"{nearest} is {kind}, expected a folder, or a new name")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{nearest} cannot be written to; name another folder, or change its permissions")


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: it has this content afterwards, or is the one that was there."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk: a rename alone may get there before the content does.

    Without effect on Windows, which can flush neither by its name.
    """
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that killed writers have left in a folder, to which nobody else may be writing."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_faults(path: Path, wrong: Sequence[tuple[str, str]]) -> None:
    """Write which items could not be used, one a line with the reason; without any, remove an earlier list."""
    if not wrong:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{name}\t{reason}\n" for name, reason in wrong), encoding="utf-8")
