"""Locks that let one process at a time work in a place; a process that ends, however it ends, holds none."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from diffusion.utils.errors import InputError

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of Lustre mounted without flock, among others


class BusyError(InputError):
    """Another process holds a lock."""


@contextlib.contextmanager
def file_lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs; it is removed at the end, and child processes do not inherit the lock.

    wait: until another process that holds it is done; else BusyError is raised. Without effect on a file system that has no
    locks.
    """
    from filelock import FileLock, Timeout  # a tenth of a second, which --help does not need

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(f"another process is at work here: it holds {path}; wait for it to end") from None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows removes no file that is open
            path.unlink(missing_ok=True)  # before it is released: afterwards it may be another's
        lock.release()


def is_locked(path: Path) -> bool:
    """Tell whether another process holds a lock file, as far as the system knows; writes nothing."""
    from filelock import lock_descriptor

    try:
        with open(path) as file:  # whose lock ends when it is closed
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:  # there is no such file, or no such lock
        return False


def has_locks(folder: Path) -> bool:
    """Tell whether the file system of a folder has locks, by taking one. Raises OSError where no file can be made."""
    path = folder / ".lock"
    with file_lock(path):
        return is_locked(path)
