"""Feature files: float16 arrays in .npy files, of which a rectangle can be read alone, and which are checked.

NumPy's own reader maps a file or reads it whole; for a crop of a patch that is 16 times as much as is used.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from diffusion.utils.content import recognise_placeholder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write

Shape = tuple[int | None, ...]  # None: any length
HEADER_BYTES = 128  # bytes: the whole header of a file that numpy wrote
EXPONENT = 0x7C00  # of a float16: all ones in what is infinite or NaN
CHECKED_AT_ONCE = 32_768  # values


def read_array(path: Path, shape: Shape) -> np.ndarray:
    """Read a whole feature file, float16, of a shape.

    Raises MissingError, or InputError for a file that is not whole, float16, of that shape, and finite.
    """
    with _opened(path, shape) as (file, found, offset):
        array = np.empty(found, dtype=np.float16)
        _read_into(path, file, array, offset)
    return check_finite(path, array)


def read_rectangle(path: Path, shape: tuple[int, int, int], rows: slice, columns: slice) -> np.ndarray:
    """Read a rectangle, float16 (C, h, w), of all channels of a feature file of shape (C, H, W); only its rows are read.

    Raises as read_array does; values outside of the rectangle are not checked.
    """
    with _opened(path, shape) as (file, _, offset):
        channels, height, width = shape
        top, bottom, _ = rows.indices(height)
        part = np.empty((channels, bottom - top, len(range(*columns.indices(width)))), dtype=np.float16)
        if part.shape == shape:
            _read_into(path, file, part, offset)
        else:  # rows of one channel lie together; those of the next channel a whole channel further on
            strip = np.empty((bottom - top, width), dtype=np.float16)
            starts = [offset + 2 * width * (channel * height + top) for channel in range(channels)]
            if hasattr(os, "posix_fadvise"):  # asked for all at once, they come from a disk almost three times as fast
                for start in starts:
                    os.posix_fadvise(file, start, strip.nbytes, os.POSIX_FADV_WILLNEED)
            for channel, start in enumerate(starts):
                _read_into(path, file, strip, start)
                part[channel] = strip[:, columns]
    return check_finite(path, part)


def write_feature(path: Path, array: np.ndarray) -> None:
    """Write an array as float16 under a temporary name, then rename it, so that no reader ever sees half a file.

    Raises InputError when a value is not finite in float16.
    """
    with np.errstate(over="ignore"):
        half = check_finite(path, np.ascontiguousarray(array, dtype=np.float16))
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, half)


def write_checked(folder: Path, name: str, array: np.ndarray) -> None:
    """Write a float16 array that is known to be finite, as write_feature does, into a folder that is there.

    Without the checks a small file takes a third of the time.
    """
    temporary = f"{folder}/.{name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(_make_header(array.shape) + array.tobytes())
        os.replace(temporary, f"{folder}/{name}")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@lru_cache(maxsize=64)
def _make_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a float16 .npy file in C order."""
    stream = io.BytesIO()
    content = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()


def is_valid(path: Path, shape: Shape) -> bool:
    """Tell whether a feature file is there, whole, of that shape, float16 and finite."""
    try:
        read_array(path, shape)
    except InputError:
        return False
    return True


def check_finite(where: Path | str, array: np.ndarray) -> np.ndarray:
    """Return the array, float16, itself. Raises InputError when a value is infinite or NaN."""
    # Comparing bits is many times faster than isfinite, which widens every value; in parts that stay in the cache, because
    # memory for a whole patch would be mapped again each time, which took ten times longer.
    bits = array.reshape(-1).view(np.uint16)
    for start in range(0, bits.size, CHECKED_AT_ONCE):
        if ((bits[start : start + CHECKED_AT_ONCE] & EXPONENT) == EXPONENT).any():
            bad = int((~np.isfinite(array)).sum())
            raise InputError(
                f"{where}: {bad} of {array.size} values are not finite in float16; extract this patch again"
            )
    return array


@contextlib.contextmanager
def _opened(path: Path, shape: Shape) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """Open a whole feature file of that shape: its descriptor, shape, and the offset of its values."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise MissingError(f"no feature file {path}; make it with pixcell features") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    try:
        try:
            header, size = os.read(file, HEADER_BYTES), os.fstat(file).st_size
            found, dtype, offset = _parse_header(header)
        except OSError as error:  # a folder, or a network drive
            raise InputError(f"{path} cannot be read ({error})") from error
        except ValueError as error:
            reason = recognise_placeholder(path) or f"is not a whole .npy file ({error}); delete it and extract again"
            raise InputError(f"{path} {reason}") from None
        fits = len(found) == len(shape) and all(want in (None, got) for want, got in zip(shape, found, strict=True))
        if not fits or dtype != np.float16:
            wanted = ", ".join("D" if n is None else str(n) for n in shape)
            raise InputError(f"{path} holds {dtype} {found}: expected float16 ({wanted}); extract this patch again")
        expected = offset + 2 * math.prod(found)
        if size != expected:
            raise InputError(
                f"{path} is not a whole .npy file ({size} bytes, expected {expected}); delete it and extract again"
            )
        yield file, found, offset
    finally:
        os.close(file)


@lru_cache(maxsize=64)
def _parse_header(start: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape, dtype and size of the header with which a .npy file starts; the files of a set share one.

    Raises ValueError for what is no such header, or no array in C order.
    """
    stream = io.BytesIO(start)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not of format 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order:
        raise ValueError("its array is in Fortran order, expected C order, as numpy.ascontiguousarray makes it")
    return shape, dtype, stream.tell()


def _read_into(path: Path, file: int, array: np.ndarray, offset: int) -> None:
    try:
        count = os.preadv(file, [array.data], offset)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if count != array.nbytes:
        raise InputError(f"{path} ended while it was read, after {count} of {array.nbytes} bytes; extract it again")
