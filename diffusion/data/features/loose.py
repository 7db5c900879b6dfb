"""Feature files: the one place that names, reads, writes and checks them.

Beside `<column>_<row>.jpeg` (or, in older sets, under ROOT/features/<same path>) lie, for a patch of S pixels,
`<column>_<row>_sd3_vae.npy`, float16 (32, S/8, S/8): 16 channels of posterior mean, then 16 of posterior std, on the VAE's scale;
`<column>_<row>_uni.npy`, float16 (n, D): one embedding per 256-pixel window, row-major.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.data.crops import tokens_per_image
from diffusion.formats import LATENT_CHANNELS, LATENT_FACTOR, METADATA_DIR, PATCHES_DIR, SSL_PREFIX, VAE_PREFIX
from diffusion.utils.content import recognise_placeholder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import read_json

EVERYTHING = slice(None)
FIRST_READ = 128  # bytes: the whole header of a file that numpy wrote
EXPONENT = 0x7C00  # of a float16: all ones in what is infinite or no number
FINITE_AT_ONCE = 32_768  # values checked at once


def feature_path(folder: Path, patch_name: str, prefix: str) -> Path:
    """Return the feature file of a patch; `folder` is ROOT/patches or the features folder."""
    return folder / Path(patch_name).with_name(f"{Path(patch_name).stem}_{prefix}.npy")


def features_folder(root: Path, features_dir: str | Path | None) -> Path:
    """Return where features go: beside the images, or in a folder of their own (relative to ROOT)."""
    return root / PATCHES_DIR if features_dir is None else root / features_dir


def made_by_file(folder: Path, key: str) -> Path:
    """Return the file that records how the features of an index key in `folder` were made."""
    return folder / METADATA_DIR / f"features_{key}.json"


def read_made_by(folder: Path, key: str) -> dict[str, dict[str, Any]]:
    """Read weights and window by prefix, as extraction noted them; nothing where it noted nothing. Raises InputError."""
    path = made_by_file(folder, key)
    try:
        noted = read_json(path, "record of features", "delete it")
    except MissingError:
        return {}
    if not all(isinstance(made, dict) for made in noted.values()):
        raise InputError(f"{path} is no record of features; delete it")
    return noted


def moments_shape(size: int) -> tuple[int, int, int]:
    side = size // LATENT_FACTOR
    return 2 * LATENT_CHANNELS, side, side


@dataclass(frozen=True)
class LooseFeatures:
    """The features of patches of `patch_size` pixels, two files a patch, in `folder`."""

    folder: Path
    patch_size: int
    vae_prefix: str = VAE_PREFIX
    ssl_prefix: str = SSL_PREFIX

    def moments(self, name: str, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> np.ndarray:
        """Posterior mean and std, float16 (32, h, w), of a part of a patch. Raises as read_moments does."""
        return read_moments(feature_path(self.folder, name, self.vae_prefix), self.patch_size, rows, columns)

    def tokens(self, name: str, which: Sequence[int] | None = None) -> np.ndarray:
        """Embeddings, float16 (L, D), of some windows of a patch, or all. Raises as read_tokens does."""
        tokens = read_tokens(feature_path(self.folder, name, self.ssl_prefix), self.patch_size)
        return tokens if which is None else tokens[which]

    def present(self, name: str) -> tuple[bool, bool]:
        """Tell whether a patch's latents and embeddings are there; they are not read."""
        latents, tokens = (feature_path(self.folder, name, prefix) for prefix in (self.vae_prefix, self.ssl_prefix))
        return latents.is_file(), tokens.is_file()


def read_moments(path: Path, size: int, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> np.ndarray:
    """Posterior mean and std, float16 (32, h, w), of a part of a patch of `size` pixels; only its rows are read.

    Raises MissingError, or InputError for a file that is not whole, float16, of the right shape, and finite there.
    """
    with _opened(path, moments_shape(size)) as (file, shape, offset):
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


def read_tokens(path: Path, size: int) -> np.ndarray:
    """Embeddings, float16 (n, D), of a patch of `size` pixels. Raises as read_moments does."""
    return _read(path, (tokens_per_image(size), None))


def write_feature(path: Path, array: np.ndarray) -> None:
    """Write aside as float16, then rename, so that no reader ever sees half a file.

    Raises InputError when a value is not finite in float16.
    """
    with np.errstate(over="ignore"):
        half = check_finite(path, np.ascontiguousarray(array, dtype=np.float16))
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, half)


def is_valid(path: Path, shape: tuple[int | None, ...]) -> bool:
    """Tell whether a feature file is there, whole, of that shape (None: any length), float16 and finite."""
    try:
        _read(path, shape)
    except InputError:
        return False
    return True


def _read(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    with _opened(path, shape) as (file, found, offset):
        array = np.empty(found, dtype=np.float16)
        _read_into(path, file, array, offset)
    return check_finite(path, array)


@contextlib.contextmanager
def _opened(path: Path, shape: tuple[int | None, ...]) -> Iterator[tuple[int, tuple[int, ...], int]]:
    """A whole feature file of that shape: its descriptor, shape, and where its values begin."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise MissingError(f"no feature file {path}; make it with tools/extract_features.py") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    try:
        try:
            header, size = os.read(file, FIRST_READ), os.fstat(file).st_size
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
    """Shape, dtype and size of the header with which a .npy file starts; the files of a set share one.

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
        count = os.preadv(file, [array], offset)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if count != array.nbytes:
        raise InputError(f"{path} ended while it was read, after {count} of {array.nbytes} bytes; extract it again")


def check_finite(where: Path | str, array: np.ndarray) -> np.ndarray:
    """Return the array, float16, itself. Raises InputError when a value is infinite or no number."""
    # Comparing bits is many times faster than isfinite, which widens every value; in parts that stay in the cache, because
    # memory for a whole patch would be mapped anew each time, which took ten times longer.
    bits = array.reshape(-1).view(np.uint16)
    for start in range(0, bits.size, FINITE_AT_ONCE):
        if ((bits[start : start + FINITE_AT_ONCE] & EXPONENT) == EXPONENT).any():
            bad = int((~np.isfinite(array)).sum())
            raise InputError(
                f"{where}: {bad} of {array.size} values are not finite in float16; extract this patch again"
            )
    return array
