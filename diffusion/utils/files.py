"""Writing files so that a reader sees the old one or the new one whole, whatever stops the writer; and telling files apart."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of Lustre mounted without flock, among others
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_ON_WINDOWS = 112  # ERROR_DISK_FULL
PROBE = 2**16  # bytes that a disk must take to count as not full
_HELD: set[IO] = set()  # lock files of this process


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; renamed to `path` when the block ends, removed when it fails.

    Raises OSError with the system's own words when the disk is full, whatever the library that writes makes of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        elsewhere = isinstance(error, OSError) and error.filename not in (None, str(temporary))
        full = None if elsewhere or isinstance(error, InputError) else _disk_full(error, path.parent)
        if full is not None:
            raise OSError(full, os.strerror(full), str(path)) from error
        if isinstance(error, OSError) and error.filename == str(temporary):  # whose name says nothing to anybody
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _disk_full(error: Exception, folder: Path) -> int | None:
    """Return the error number when a failed write met a full disk; None for other failures.

    Many libraries raise errors of their own. safetensors has the number in its message; after torch.save, NumPy and Pillow,
    whose unfinished file still fills the disk, a few more bytes tell.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = errno.ENOSPC if os.name == "nt" and match[1] == str(FULL_ON_WINDOWS) else int(match[1])
    if number is not None:
        return number if number in DISK_FULL else None
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as refused:
        return refused.errno if refused.errno in DISK_FULL else None
    return None


def check_writable(folder: Path) -> None:
    """Raise InputError for a folder that cannot be made or written to: found out before hours of work."""
    absolute = folder.absolute()
    nearest = next((place for place in (absolute, *absolute.parents) if os.path.lexists(place)), None)
    if nearest is None:
        raise InputError(f"{folder}: there is no {absolute.anchor}; name another folder")
    if not nearest.is_dir():
        kind = "a file" if nearest.exists() else "a link to nothing"
        raise InputError(f"{nearest} is {kind}, expected a folder, or a new name")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{nearest} cannot be written to; name another folder, or change its permissions")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that there is one with this content, or the one that was there."""
    with written_aside(path) as temporary:
        temporary.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on: a rename alone may come before the content.

    Without effect on Windows, which can do so for neither by its name.
    """
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder. For one that nobody else is writing to."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file for one process at a time; the system lets go of it when the process ends, however it ends.

    Raises InputError when another process holds it. Without effect where the system, or the disk, has no such locks.
    """
    if fcntl is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))  # not one just removed
        except BlockingIOError:
            mine = False
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            mine = True
        if not mine:
            raise InputError(f"another process is at work here: it holds {path}; wait for it to end")
        _HELD.add(file)
        try:
            yield
        finally:
            _HELD.discard(file)
            path.unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Tell whether another process holds a lock file, as far as the system knows; writes nothing."""
    if fcntl is None or not path.is_file():
        return False
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def _let_go() -> None:
    """In a child: a lock lives as long as any copy of its file, and must not outlive a parent that is killed."""
    for file in _HELD:
        file.close()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def recognise_placeholder(path: Path) -> str | None:
    """Say what lies in the place of a file that was not really fetched, and what to do; None for anything else.

    Git LFS pointers follow the format of git-lfs.com/spec/v1; web pages are what a download without permission leaves.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if not start:
        return "is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file that it stands for; run `git lfs pull` where it came from"
    if re.match(rb"\s*(<\?xml[^>]*>\s*)?<Error>", start.removeprefix(codecs.BOM_UTF8)):
        return "is a server's error message, not the file that was asked for; download it again, signed in where that is needed"
    if re.match(rb"\s*(<\?xml[^>]*>\s*)?<(!doctype html|html)\b", start.removeprefix(codecs.BOM_UTF8), re.IGNORECASE):
        return "is an HTML page, not the file that was asked for; download it again, signed in where that is needed"
    return None


def fingerprint(path: Path) -> str:
    """Return a hash of a file's content, which tells weights apart whatever their names; about a second a gigabyte."""
    return _hashed(path, hashlib.blake2b(digest_size=16))


def fingerprint_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of names, shapes, types and values, which tells weights apart whatever file they come in."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, as others publish it."""
    return _hashed(path, hashlib.sha256())


def _hashed(path: Path, digest: hashlib._Hash) -> str:
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
