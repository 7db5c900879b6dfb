"""What every window of a set of images shows of nuclei and stains. Letters: N windows of 256, k windows of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from diffusion.data.nuclei.segmentation import segment_nuclei
from diffusion.data.nuclei.slide_masks import LABEL_SUFFIXES, read_labels
from diffusion.evaluation.metrics.cells import compare_segmentations, dice
from diffusion.evaluation.metrics.stains import estimate_stain_vectors, stain_densities, stained
from diffusion.evaluation.sets.cache import READ_ERRORS, hash_files
from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.image_set import ImageSet, decode_image
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import abbreviate

VERSION = 1  # of what is measured, and how
STAINS = ("haematoxylin", "eosin")
VECTORS = tuple(f"{stain}_{channel}" for stain in STAINS for channel in ("red", "green", "blue"))
DENSITIES = tuple(f"{stain}_of_{place}" for place in ("nuclei", "stroma") for stain in STAINS)
COLUMNS = ("nuclei", "area", *DENSITIES, *VECTORS)
Given = TypeVar("Given", bound=tuple)
Found = TypeVar("Found")


@dataclass(frozen=True)
class CellTable:
    """Nuclei and stains of every window of a set, (N, 12) in the order of COLUMNS.

    nuclei: how many; area: their mean, in square microns; densities: optical, the mean over nuclei of each one's mean, and that
    of stained pixels beside them; the parts of the unit vectors of the stains. NaN where there is no nucleus, no stroma, too little tissue.
    """

    rows: Sequence[Row]
    values: np.ndarray
    bad: dict[str, str] = field(default_factory=dict)

    def column(self, name: str) -> np.ndarray:
        """Return one column (N,) by its name."""
        return self.values[:, COLUMNS.index(name)]

    def features(self) -> Features:
        """Return the table as features, whose rows, windows and files left out a report shows."""
        return Features(self.rows, len(COLUMNS), [lambda: self.values], [len(self.rows)], "cells", self.bad)


def measure_window(pixels: np.ndarray, labels: np.ndarray, mpp: float) -> np.ndarray:
    """Measure one window, uint8 (256, 256, 3), with its nuclei as numbers (256, 256): (12,) in the order of COLUMNS."""
    densities = stain_densities(pixels)
    areas = np.bincount(labels.ravel())
    present = np.flatnonzero(areas[1:]) + 1
    mean_area, of_nuclei = np.nan, [np.nan, np.nan]
    if len(present):
        mean_area = float(areas[present].mean()) * mpp**2
        of_nuclei = [
            float((np.bincount(labels.ravel(), stain.ravel())[present] / areas[present]).mean())
            for stain in np.moveaxis(densities, -1, 0)
        ]
    stroma = stained(pixels) & (labels == 0)
    of_stroma = densities[stroma].mean(0).tolist() if stroma.any() else [np.nan, np.nan]
    return np.array(
        [len(present), mean_area, *of_nuclei, *of_stroma, *estimate_stain_vectors(pixels).ravel()], np.float64
    )


class NucleiSource(NamedTuple):
    """Where the nuclei of images come from: found by haematoxylin at `mpp` microns a pixel, or label images of a folder."""

    mpp: float
    folder: Path | None = None

    def find(self, name: str, windows: np.ndarray) -> np.ndarray:
        """Return the nuclei of an image's windows, uint8 (k, 256, 256, 3), as numbers (k, 256, 256). Raises MissingError, InputError."""
        if self.folder is None:
            return np.stack([segment_nuclei(window, self.mpp) for window in windows])
        return read_objects(self.folder, name, len(windows))

    def identity(self, names: Iterable[str]) -> list[Any]:
        """Return what the nuclei of images depend on beside these. Raises MissingError for an image without label image."""
        if self.folder is None:
            return [self.mpp]
        return [self.mpp, hash_files(find_all_objects(self.folder, names))]


def find_objects_file(folder: Path, name: str) -> Path:
    """Return the label image or mask in a folder that has the name of an image. Raises MissingError."""
    for suffix in LABEL_SUFFIXES:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise MissingError(
        f"no mask of {name} in {folder}: expected {name}{LABEL_SUFFIXES[0]}, or {', '.join(LABEL_SUFFIXES[1:])}"
    )


def find_all_objects(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the label image or mask of every image. Raises MissingError, with how many have none."""
    found, missing = {}, []
    for name in names:
        try:
            found[name] = find_objects_file(folder, name)
        except MissingError:
            missing.append(name)
    if missing:
        raise MissingError(
            f"{len(missing)} images have no mask in {folder}: {abbreviate(missing)}; expected files of their names"
        )
    return found


def read_objects(folder: Path, name: str, count: int) -> np.ndarray:
    """Read the objects of an image as the numbers of its `count` windows (k, 256, 256), row by row.

    Of a binary mask, each connected part is an object. Raises MissingError, InputError for a mask of another size.
    """
    path = find_objects_file(folder, name)
    labels = read_labels(path)
    across, down = labels.shape[1] // WINDOW, labels.shape[0] // WINDOW
    if across * down != count or labels.shape != (down * WINDOW, across * WINDOW):
        raise InputError(
            f"{path} has {labels.shape[1]} x {labels.shape[0]} pixels, and its image {count} windows of {WINDOW}: expected the "
            "mask of that image"
        )
    windows = labels.reshape(down, WINDOW, across, WINDOW).swapaxes(1, 2).reshape(-1, WINDOW, WINDOW)
    return np.stack([split_binary(window) for window in windows])


def split_binary(labels: np.ndarray) -> np.ndarray:
    """Return the connected parts of a mask of one value as objects; labels already, as they are."""
    from skimage.measure import label

    return np.asarray(label(labels > 0, connectivity=1)) if len(np.unique(labels[labels > 0])) == 1 else labels


def measure_cells(images: ImageSet, source: NucleiSource, cache: Path, workers: int = 0) -> CellTable:
    """Measure nuclei and stains of every window of a set, from the cache where they are there; `workers` processes share the work.

    Raises MissingError, InputError for images of which none can be read, and nuclei that are missing or not theirs.
    """
    identity = ["cells", VERSION, images.fit, *source.identity(images.files)]
    file = cache / f"cells_{hash_files(images.files, identity, str(images.folder.resolve()))}.npz"
    job = partial(_measure_file, source=source, fit=images.fit)
    measured = _load_or_measure(file, job, list(images.files.items()), workers, f"cells: {images.folder}", len(COLUMNS))
    if not measured.rows:
        name, reason = next(iter(measured.bad.items()))
        raise InputError(f"{images.files[name]} {reason}")
    return measured


def _measure_file(item: tuple[str, Path], source: NucleiSource, fit: str) -> tuple[np.ndarray, str]:
    """Return the windows of a file (k, 12), and what is wrong with it."""
    name, path = item
    windows, _, wrong, _ = decode_image(path, fit)
    if windows is None:
        return np.empty((0, len(COLUMNS))), wrong
    labels = source.find(name, windows)
    return np.stack([measure_window(*each, source.mpp) for each in zip(windows, labels, strict=True)]), ""


ADHERENCE = ("dice", "found", "aji", "pq", "dice_of_others")
OTHERS = 8  # masks of other images that each image is compared with, too: one alone is more or less alike by chance


def measure_adherence(
    images: ImageSet, source: NucleiSource, masks: Path, cache: Path, seed: int = 0, workers: int = 0
) -> CellTable:
    """Compare the nuclei of every window with the mask of its image, and with those of other images drawn by `seed`.

    Columns are those of ADHERENCE: Dice, the share of the mask's objects found, AJI, PQ, and the mean Dice with other masks.
    Raises MissingError, InputError for a mask that is missing, or not of its image's size.
    """
    names = list(images.files)
    files = find_all_objects(masks, names)
    identity = ["adherence", VERSION, images.fit, seed, hash_files(files), *source.identity(names)]
    file = cache / f"adherence_{hash_files(images.files, identity, str(images.folder.resolve()))}.npz"
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    place = {number: i for i, number in enumerate(order)}
    others = [
        [names[order[(place[i] + step) % len(names)]] for step in range(1, min(OTHERS, len(names) - 1) + 1)]
        for i in range(len(names))
    ]
    items = [(name, path, other) for (name, path), other in zip(images.files.items(), others, strict=True)]
    job = partial(_compare_file, source=source, fit=images.fit, masks=masks)
    return _load_or_measure(file, job, items, workers, f"masks: {images.folder}", len(ADHERENCE))


def _compare_file(
    item: tuple[str, Path, list[str]], source: NucleiSource, fit: str, masks: Path
) -> tuple[np.ndarray, str]:
    name, path, others = item
    windows, _, wrong, _ = decode_image(path, fit)
    if windows is None:
        return np.empty((0, len(ADHERENCE))), wrong
    found, asked = source.find(name, windows), read_objects(masks, name, len(windows))
    other_masks = [read_objects(masks, other, len(windows)) for other in others]
    rows = []
    for i, (labels, mask) in enumerate(zip(found, asked, strict=True)):
        agreement = compare_segmentations(mask, labels)
        by_chance = [dice(other[i] > 0, labels > 0) for other in other_masks]
        chance = float(np.mean(by_chance)) if by_chance else np.nan
        rows.append([agreement.dice, agreement.found, agreement.aji, agreement.pq, chance])
    return np.array(rows), ""


def _load_or_measure(
    file: Path,
    job: Callable[[Given], tuple[np.ndarray, str]],
    items: Sequence[Given],
    workers: int,
    title: str,
    width: int,
) -> CellTable:
    """Return the table of a file, or measure it and write that. An item is a tuple that begins with a name."""
    with suppress(*READ_ERRORS), np.load(file, allow_pickle=False) as stored:
        rows = [Row(name, int(i)) for name, i in zip(stored["names"].tolist(), stored["windows"], strict=True)]
        return CellTable(
            rows,
            stored["values"],
            dict(zip(*(stored[f"bad_{of}"].tolist() for of in ("names", "reasons")), strict=True)),
        )
    rows, bad, values = [], {}, [np.empty((0, width))]
    with tqdm(total=len(items), desc=title, unit="image", leave=False) as progress:
        for item, (measured, wrong) in zip(items, map_in_processes(job, items, workers), strict=True):
            name = item[0]
            rows += [Row(name, i) for i in range(len(measured))]
            values.append(measured)
            if wrong:
                bad[name] = wrong
            progress.update()
    table = CellTable(rows, np.concatenate(values), bad)
    columns = dict(names=np.array([row.name for row in rows], str), windows=np.array([row.window for row in rows], int))
    columns |= dict(bad_names=np.array(list(bad), str), bad_reasons=np.array(list(bad.values()), str))
    with atomic_write(file) as temporary, open(temporary, "wb") as stored:
        np.savez(stored, values=table.values, **columns)
    return table


class _Results(Dataset):
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
