"""Measurements of every window of a set of images, taken without an encoder. Letters: N windows of 256, k of an image, D numbers of each.

Their tables are features like those of an encoder: in the same cache, shared among processes, with the same notes on what was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diffusion.evaluation.sets.cache import Encoder, FileRecord, load_parts, write_part
from diffusion.evaluation.sets.embedding import check_file, share_parts
from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.image_set import DecodedImage, ImageSet, decode_image
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState
    from typing_extensions import Self

Given = TypeVar("Given")
Found = TypeVar("Found")


class Measurement(Encoder, Protocol):
    """How a set is measured; in a cache of features it stands where an encoder does."""

    def measure(self, item: tuple[str, Path], fit: str) -> tuple[np.ndarray, FileRecord]:
        """Return the windows of an image file, given with its name, (k, D), and the result of reading it. Raises InputError."""
        ...


@dataclass(frozen=True)
class Table:
    """The measurements of every window of a set, (N, D) in the order of `names`."""

    rows: Sequence[Row]
    values: np.ndarray
    names: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def of(cls, features: Features) -> Self:
        """Read a table whole."""
        return cls(features.rows, features.take(range(len(features))).double().numpy())

    def column(self, name: str) -> np.ndarray:
        """Return one column (N,) by its name."""
        return self.values[:, self.names.index(name)]

    def take(self, numbers: np.ndarray) -> Self:
        """Return the rows of these numbers, in their order."""
        return type(self)([self.rows[i] for i in numbers], self.values[numbers])


def number_images(table: Table) -> np.ndarray:
    """Return the number of the image of each window (N,), counted from 0 in the order in which images come."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(row.name, len(numbers)) for row in table.rows], dtype=np.int64)


def find_pairs(real: Table, synthetic: Table) -> np.ndarray:
    """Return the row numbers of windows that both sets have (P, 2)."""
    place = {row: i for i, row in enumerate(synthetic.rows)}
    pairs = [(i, place[row]) for i, row in enumerate(real.rows) if row in place]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def decode_unresized(path: Path, fit: str, metric: str) -> DecodedImage:
    """Read an image whose pixels are measured, for a metric. Raises InputError for one that would be resized."""
    image = decode_image(path, fit)
    if image.windows is not None and fit == "resize" and image.size != (WINDOW, WINDOW):
        raise InputError(
            f"{path} would be resized, and its nuclei with it: take --on-size windows, or --metrics without {metric}"
        )
    return image


def measure_set(
    images: ImageSet,
    measurement: Measurement,
    cache: Path,
    state: PartialState,
    workers: int = 0,
    strict: bool = False,
) -> Features:
    """Measure every window of a set, from the cache where it is there; processes share the work on the rest.

    workers: further processes of each. strict: a file that cannot be read is an error. Raises MissingError, InputError for an
    image of a size that is refused, for none that can be read, and as the measurement does.
    """
    parts, mine = share_parts(images, measurement, cache, state)
    total = sum(len(part.paths) for part in mine)
    title, quiet = f"{measurement.name}: {images.folder}", not state.is_main_process
    with tqdm(total=total, desc=title, unit="image", leave=False, disable=quiet) as progress:
        for part in mine:
            values, records = [np.empty((0, measurement.width))], []
            items = list(zip(part.names, part.paths, strict=True))
            job = partial(measurement.measure, fit=images.fit)
            for (_, path), (rows, record) in zip(items, map_in_processes(job, items, workers), strict=True):
                check_file(path, record, strict)
                values.append(rows)
                records.append(record)
                progress.update()
            write_part(part.file, np.concatenate(values).astype(np.float32), records)
    state.wait_for_everyone()
    return load_parts(parts, images, measurement, strict)


class _Results(Dataset, Generic[Given, Found]):
    """The results of a job by the numbers of its items, for the workers of a loader: errors are returned, not raised."""

    def __init__(self, job: Callable[[Given], Found], items: Sequence[Given]):
        self.job, self.items = job, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Found | InputError:
        try:
            return self.job(self.items[i])
        except InputError as error:
            return error


def map_in_processes(job: Callable[[Given], Found], items: Sequence[Given], workers: int) -> Iterator[Found]:
    """Yield the result of each item, in order, by `workers` processes; with none, by this one. Raises InputError as the job does."""
    loader = DataLoader(
        _Results(job, items), batch_size=None, num_workers=min(workers, len(items)), collate_fn=_as_it_is
    )
    for result in loader:
        if isinstance(result, InputError):
            raise result
        yield result


def _as_it_is(result: Found) -> Found:
    return result
