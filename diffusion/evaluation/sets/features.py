"""Features of sets of images: computed in parts, which stay on the disk, and read part by part.

Letters: N rows, one a window of 256; D width of the embedding.
A part holds the features of some files. It is named by a hash of everything they follow from (the encoder and its
weights, each file's name, size and time of change), so that parts are shared between processes, kept by a run that is
stopped, and never mistaken.
"""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.evaluation.sets.images import Decoded, DecodedImages, ImageSet
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write

if TYPE_CHECKING:
    from accelerate import PartialState

PART = 256  # files of a part: small enough for many processes to share a set of thousands
AT_ONCE = 2**25  # bytes of files that are decoded for one batch: large pictures have many windows each
VERSION = 1  # of what a part holds
FEATURE_FILES = (".npy", ".npz")
DAMAGED = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error)  # what numpy says of such files


class Row(NamedTuple):
    """Which window of which file a row of features is of."""

    name: str
    window: int = 0


@dataclass(frozen=True)
class Features:
    """Rows of one encoder, (N, D) in float32, of which no more than a part is held at once.

    bad: names of files that have no row, and why. formats: how many files there are of each.
    """

    rows: Sequence[Row]
    width: int
    parts: Sequence[Callable[[], np.ndarray]]
    lengths: Sequence[int]
    encoder: str
    bad: dict[str, str] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, values: torch.Tensor, encoder: str = "") -> Features:
        """Features (N, D) that are at hand; rows are named by their numbers."""
        array = values.float().cpu().numpy()
        rows = [Row(str(i)) for i in range(len(array))]
        return cls(rows, array.shape[1], [lambda: array], [len(array)], encoder)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The rows part by part, float32 (n, D)."""
        for load in self.parts:
            yield torch.from_numpy(load())

    def take(self, numbers: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Some rows, float32 (n, D), in the order of their numbers."""
        numbers = np.asarray(numbers, dtype=np.int64)
        taken = np.empty((len(numbers), self.width), dtype=np.float32)
        first = 0
        for load, length in zip(self.parts, self.lengths, strict=True):
            here = np.flatnonzero((numbers >= first) & (numbers < first + length))
            if len(here):
                taken[here] = load()[numbers[here] - first]
            first += length
        return torch.from_numpy(taken)

    def sample(self, count: int, seed: int) -> torch.Tensor:
        """All rows when there are no more than `count`, else as many drawn without repeats, in their order."""
        if len(self) <= count:
            return self.take(range(len(self)))
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False)))


@dataclass
class Timing:
    """What embedding took: seconds in all and in the encoder, of so many images that were not on the disk yet."""

    images: int = 0
    seconds: float = 0.0
    encoder: float = 0.0

    @property
    def encoder_share(self) -> float:
        return self.encoder / self.seconds if self.seconds else 0.0


class Part(NamedTuple):
    """Files of one part, and where their features are."""

    names: list[str]
    paths: list[Path]
    file: Path


def embed_set(
    images: ImageSet,
    embedder: PatchEmbedder,
    cache: Path,
    state: PartialState,
    batch_size: int = 32,
    workers: int = 0,
    strict: bool = False,
    timing: Timing | None = None,
) -> Features:
    """The features of a set, from the disk where they are there; processes share the parts that are not.

    strict: a file that cannot be read is an error. Raises InputError for one of a size that was not asked for, and when
    there is none that can be read.
    """
    parts = list(split(images, embedder, cache))
    missing = [part for part in parts if not is_whole(part.file)]
    state.wait_for_everyone()  # all have looked before one of them writes
    # sets of one part are not all the first process's
    first = (state.process_index + int(parts[0].file.stem[-8:], 16)) % state.num_processes
    mine = missing[first :: state.num_processes]
    timing = timing if timing is not None else Timing()
    compute(mine, images, embedder, batch_size, workers, strict, timing, quiet=not state.is_main_process)
    state.wait_for_everyone()
    return open_parts(parts, images, embedder, strict)


def split(images: ImageSet, embedder: PatchEmbedder, cache: Path) -> Iterator[Part]:
    """The parts of a set, each with its name on the disk."""
    identity = [VERSION, embedder.name, embedder.fingerprint, str(embedder.dtype), str(embedder.view), images.fit]
    files = list(images.files.items())
    for first in range(0, len(files), PART):
        names, paths = map(list, zip(*files[first : first + PART], strict=True))
        digest = digest_of(dict(zip(names, paths, strict=True)), identity, str(images.folder.resolve()))
        yield Part(names, paths, cache / f"{embedder.name}_{digest}.npz")


def digest_of(files: Mapping[str, Path], *more: Any) -> str:
    """What tells files from others that they may become: their names, sizes and times of change, hashed."""
    stats = [path.stat() for path in files.values()]
    content = json.dumps([*more, list(files), [(stat.st_size, stat.st_mtime_ns) for stat in stats]])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def compute(
    parts: Sequence[Part],
    images: ImageSet,
    embedder: PatchEmbedder,
    batch_size: int,
    workers: int,
    strict: bool,
    timing: Timing,
    quiet: bool = False,
) -> None:
    """Embed the files of some parts and write each part when it is whole. Raises InputError as `embed_set`."""
    if not parts:
        return
    begun = time.perf_counter()
    loader = iter(
        DataLoader(
            DecodedImages([path for part in parts for path in part.paths], images.fit),
            batch_sampler=batches_within(parts, batch_size),
            collate_fn=gathered,
            num_workers=workers,
            pin_memory=embedder.device.type == "cuda",
        )
    )
    total = sum(len(part.paths) for part in parts)
    with tqdm(
        total=total, desc=f"{embedder.name}: {images.folder}", unit="image", leave=False, disable=quiet
    ) as progress:
        for part in parts:
            values, files = [np.empty((0, embedder.width), np.float32)], []
            while len(files) < len(part.paths):
                windows, read = next(loader)
                for path, file in zip(part.paths[len(files) :], read, strict=False):
                    check(path, file, strict)
                files += read
                asked = time.perf_counter()
                values += [embedder.embed(some).cpu().numpy() for some in windows.split(batch_size) if len(some)]
                timing.encoder += time.perf_counter() - asked
                progress.update(len(read))
            write_part(part.file, np.concatenate(values), files)
    timing.images += total
    timing.seconds += time.perf_counter() - begun


class ReadFile(NamedTuple):
    """What became of a file: how many windows, in which format; or what is wrong with it."""

    windows: int
    format: str
    wrong: str
    refused: bool


def batches_within(parts: Sequence[Part], size: int) -> list[list[int]]:
    """Numbers of files, over all parts, in batches of which none is of two parts, nor of too many bytes."""
    batches: list[list[int]] = []
    number = 0
    for part in parts:
        batches.append([])
        held = 0
        for path in part.paths:
            held += path.stat().st_size
            if batches[-1] and (len(batches[-1]) == size or held > AT_ONCE):
                batches.append([])
                held = path.stat().st_size
            batches[-1].append(number)
            number += 1
    return batches


def gathered(files: Sequence[Decoded]) -> tuple[torch.Tensor, list[ReadFile]]:
    """The windows of some files, uint8 (n, 3, 256, 256), and what became of each."""
    there = [file.windows for file in files if file.windows is not None]
    pixels = np.concatenate(there) if there else np.empty((0, WINDOW, WINDOW, 3), np.uint8)
    read = [
        ReadFile(0 if file.windows is None else len(file.windows), file.format, file.wrong, file.refused)
        for file in files
    ]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), read


def check(path: Path, file: ReadFile, strict: bool) -> None:
    if file.refused:
        raise InputError(f"{path} {file.wrong}; --on_size windows scores its windows of 256, resize makes it smaller")
    if strict and file.wrong:
        raise InputError(f"{path} {file.wrong}; without --strict it would be left out and named")


def write_part(path: Path, values: np.ndarray, files: Sequence[ReadFile]) -> None:
    windows, formats, wrong, _ = (np.array(column) for column in zip(*files, strict=True))
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, features=values, windows=windows, formats=formats, wrong=wrong)


def is_whole(path: Path) -> bool:
    """Whether a part is there and can be read; one that is damaged is computed again."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return all(len(content[name]) > 0 for name in ("windows", "formats", "wrong")) and "features" in content
    except DAMAGED:
        return False


def open_parts(parts: Sequence[Part], images: ImageSet, embedder: PatchEmbedder, strict: bool) -> Features:
    """Parts on the disk as one. Raises InputError when nothing could be read or, if strict, when something could not."""
    rows: list[Row] = []
    bad: dict[str, str] = {}
    lengths, formats = [], Counter()
    for part in parts:
        if not is_whole(part.file):
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


def read_feature_file(path: Path) -> Features:
    """Features computed elsewhere: an .npy file of numbers (N, D), or an .npz file with them as `features`.

    The latter may have `names` (N,), which say what is a pair; else the numbers of the rows do.
    Raises MissingError, or InputError for a file that is damaged, of another shape, or holds what is not finite.
    """
    if not path.is_file():
        raise MissingError(f"no file of features at {path}")
    try:
        content = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        if isinstance(content, np.ndarray) is not (path.suffix == ".npy"):
            raise ValueError(f"its content is of another kind than {path.suffix}")
        values = content if path.suffix == ".npy" else content["features"]
        named = path.suffix == ".npz" and "names" in content
        names = content["names"].tolist() if named else list(range(len(values)))
    except DAMAGED as error:
        why = "not of numbers alone" if "pickle" in str(error) else str(error).splitlines()[0]
        raise InputError(f"{path} is not a whole file of features ({why})") from error
    if values.ndim != 2 or values.dtype.kind != "f" or not len(values):
        raise InputError(f"{path} holds {values.dtype} {values.shape}, expected floating-point numbers (N, D)")
    if len(names) != len(values) or len(set(names)) != len(names):
        raise InputError(f"{path} has {len(set(names))} different names for {len(values)} rows; expected one each")
    starts = range(0, len(values), PART)

    def part(first: int) -> Callable[[], np.ndarray]:
        return lambda: np.array(values[first : first + PART], dtype=np.float32)

    for first in starts:
        if not np.isfinite(part(first)()).all():
            raise InputError(
                f"{path} holds numbers that are not finite, in rows {first} to {min(first + PART, len(values)) - 1}"
            )
    lengths = [min(PART, len(values) - first) for first in starts]
    rows = [Row(str(name)) for name in names]
    return Features(rows, values.shape[1], [part(first) for first in starts], lengths, path.name)
