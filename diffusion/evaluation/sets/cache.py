"""The cache of features: sets of images in parts, each a file on disk.

A part holds the features of some files. It is named by a hash of everything they depend on (the encoder and its weights,
each file's name, size and time of change), so that processes share parts, a run that was stopped keeps them, and no part is
taken for another.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write

PART_FILES = 256  # files of a part: few enough for many processes to share a set of thousands
VERSION = 1  # of the format of a part
READ_ERRORS = (
    ValueError,
    KeyError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)  # raised by numpy for damaged files


class Encoder(Protocol):
    """What features are taken with, as far as they depend on it."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def view(self) -> Any: ...


class CachePart(NamedTuple):
    """The files of one part, and the file of their features."""

    names: list[str]
    paths: list[Path]
    file: Path


def split_into_parts(images: ImageSet, embedder: Encoder, cache: Path) -> Iterator[CachePart]:
    """Yield the parts of a set, each with its name on disk."""
    identity = [VERSION, embedder.name, embedder.fingerprint, str(embedder.dtype), str(embedder.view), images.fit]
    files = list(images.files.items())
    for first in range(0, len(files), PART_FILES):
        names, paths = map(list, zip(*files[first : first + PART_FILES], strict=True))
        digest = hash_files(dict(zip(names, paths, strict=True)), identity, str(images.folder.resolve()))
        yield CachePart(names, paths, cache / f"{embedder.name}_{digest}.npz")


def hash_files(files: Mapping[str, Path], *more: Any) -> str:
    """Hash the names, sizes and times of change of files, and whatever else they are identified by."""
    stats = [path.stat() for path in files.values()]
    content = json.dumps([*more, list(files), [(stat.st_size, stat.st_mtime_ns) for stat in stats]])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class FileRecord(NamedTuple):
    """The result of reading a file: the number of its windows and its format, or what is wrong with it."""

    windows: int
    format: str
    wrong: str
    refused: bool


def write_part(path: Path, values: np.ndarray, files: Sequence[FileRecord]) -> None:
    """Write the features (n, D) of the windows of some files."""
    windows, formats, wrong, _ = (np.array(column) for column in zip(*files, strict=True))
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, features=values, windows=windows, formats=formats, wrong=wrong)


def is_readable(path: Path) -> bool:
    """Return whether a part exists and can be read; one that is damaged is computed again."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return all(len(content[name]) > 0 for name in ("windows", "formats", "wrong")) and "features" in content
    except READ_ERRORS:
        return False


def load_parts(parts: Sequence[CachePart], images: ImageSet, embedder: Encoder, strict: bool) -> Features:
    """Open all parts as one set of features.

    Raises MissingError for a part that is missing; InputError when no image could be read or, if strict, when one could not.
    """
    rows: list[Row] = []
    bad: dict[str, str] = {}
    lengths, formats = [], Counter()
    for part in parts:
        if not is_readable(part.file):
            raise MissingError(f"no {part.file}, which another process has written; do all see the same --cache?")
        with np.load(part.file, allow_pickle=False) as content:
            windows, kinds, wrong = (content[name].tolist() for name in ("windows", "formats", "wrong"))
        for name, count, kind, reason in zip(part.names, windows, kinds, wrong, strict=True):
            rows += [Row(name, i) for i in range(count)]
            if reason:
                bad[name] = reason
            else:
                formats[kind] += 1
        lengths.append(sum(windows))
    if bad and (strict or not rows):
        name, reason = next(iter(bad.items()))
        also = f" ({len(bad)} of {len(images.files)} images are like that)" if len(bad) > 1 else ""
        raise InputError(f"{images.files[name]} {reason}{also}")
    loaders = [_loader(part.file) for part in parts]
    return Features(rows, embedder.width, loaders, lengths, embedder.name, bad, dict(sorted(formats.items())))


def _loader(file: Path) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        with np.load(file, allow_pickle=False) as content:
            return content["features"]

    return load
