"""What every window of a set of images shows of nuclei, stains and masks. Letters: N windows of 256, k windows of an image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from diffusion.data.nuclei.segmentation import segment_nuclei
from diffusion.evaluation.metrics.cells import compare_segmentations, dice
from diffusion.evaluation.metrics.stains import estimate_stain_vectors, stain_densities, stained
from diffusion.evaluation.sets.cache import FileRecord, hash_files
from diffusion.evaluation.sets.image_set import DecodedImage, ImageSet
from diffusion.evaluation.sets.measuring import Table, decode_unresized
from diffusion.evaluation.sets.objects import find_all_objects, find_objects_file, read_objects
from diffusion.utils.content import fingerprint_file

CELLS = "cells"  # the metric, which takes the place of an encoder in caches and tables
VERSION = 2  # of what is measured, and how
STAINS = ("haematoxylin", "eosin")
VECTORS = tuple(f"{stain}_{channel}" for stain in STAINS for channel in ("red", "green", "blue"))
DENSITIES = tuple(f"{stain}_of_{place}" for place in ("nuclei", "stroma") for stain in STAINS)
ADHERENCE = ("dice", "found", "aji", "pq", "dice_of_others")
COLUMNS = ("nuclei", "area", *DENSITIES, *VECTORS, *ADHERENCE)
OTHERS = 8  # masks of other images that each image is compared with, too: one alone is more or less alike by chance


class CellTable(Table):
    """Nuclei and stains of every window of a set, (N, 17) in the order of COLUMNS.

    nuclei: how many; area: their mean, in square microns; densities: optical, to base 10, the mean over nuclei of each one's
    mean, and that of stained pixels beside them; the unit vectors of the stains; then, against the mask of the image: Dice, the share of
    the mask's objects found, AJI, PQ, and the mean Dice with masks of other images.
    NaN where there is no nucleus, no stroma, too little tissue, or no mask.
    """

    names: ClassVar[tuple[str, ...]] = COLUMNS


def measure_window(pixels: np.ndarray, labels: np.ndarray, mpp: float) -> np.ndarray:
    """Measure one window, uint8 (256, 256, 3), with its nuclei as numbers (256, 256): (17,), without a mask."""
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
    vectors = estimate_stain_vectors(pixels).ravel().tolist()
    return np.array([len(present), mean_area, *of_nuclei, *of_stroma, *vectors, *[np.nan] * len(ADHERENCE)])


class NucleiSource(NamedTuple):
    """Where the nuclei of images come from: found by their stain at `mpp` microns a pixel, or files of a folder.

    segment: finds the nuclei of a window, uint8 (256, 256, 3), at `mpp`, as numbers (256, 256).
    """

    mpp: float
    folder: Path | None = None
    segment: Callable[[np.ndarray, float], np.ndarray] = segment_nuclei

    def find(self, name: str, image: DecodedImage) -> np.ndarray:
        """Return the nuclei of an image's windows as numbers (k, 256, 256). Raises MissingError, InputError."""
        assert image.windows is not None
        if self.folder is None:
            return np.stack([self.segment(window, self.mpp) for window in image.windows])
        return read_objects(find_objects_file(self.folder, name), self.mpp, image.size)


@dataclass(frozen=True)
class CellMeasurement:
    """How a set is measured; in a cache of features it stands where an encoder does.

    nuclei: where they come from. masks: of every image, by its name; others: names of images of other masks, by that name.
    """

    nuclei: NucleiSource
    masks: Mapping[str, Path] = field(default_factory=dict)
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    name: str = CELLS
    width: int = len(COLUMNS)
    dtype: str = "float32"
    view: str = ""

    @property
    def fingerprint(self) -> str:
        """Return a hash of everything that values depend on beside the images."""
        own: list[Any] = [VERSION, self.nuclei.mpp, hash_files(self.files), hash_files(self.masks), dict(self.others)]
        return hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=16).hexdigest()

    def measure(self, item: tuple[str, Path], fit: str) -> tuple[np.ndarray, FileRecord]:
        """Return the windows of an image file (k, 17), and the result of reading it. Raises InputError for masks that are not its own."""
        name, path = item
        image = decode_unresized(path, fit, self.name)
        if image.windows is None:
            return np.empty((0, self.width)), FileRecord(0, image.format, image.wrong, image.refused)
        labels = self.nuclei.find(name, image)
        rows = np.stack([measure_window(*each, self.nuclei.mpp) for each in zip(image.windows, labels, strict=True)])
        if name in self.masks:
            rows[:, -len(ADHERENCE) :] = self._compare(name, image.size, labels)
        return rows, FileRecord(len(rows), image.format, "", False)

    def _compare(self, name: str, size: tuple[int, int], labels: np.ndarray) -> np.ndarray:
        """Return the agreement of windows with the mask of their image, and with those of others, (k, 5)."""
        mask = read_objects(self.masks[name], self.nuclei.mpp, size)
        others = [read_objects(self.masks[other], self.nuclei.mpp) for other in self.others[name]]
        rows = []
        for i, (asked, found) in enumerate(zip(mask, labels, strict=True)):
            agreement = compare_segmentations(asked, found)
            by_chance = [dice(other[i] > 0, found > 0) for other in others if i < len(other)]
            chance = float(np.mean(by_chance)) if by_chance else np.nan
            rows.append([agreement.dice, agreement.found, agreement.aji, agreement.pq, chance])
        return np.array(rows)


def plan_measurement(
    images: ImageSet, nuclei: NucleiSource, masks: Path | None = None, seed: int = 0
) -> CellMeasurement:
    """Look for the files of nuclei and masks of all images, and draw by `seed` which other masks each is compared with.

    Raises MissingError, with how many have none.
    """
    names = list(images.files)
    files = {} if nuclei.folder is None else find_all_objects(nuclei.folder, names)
    if masks is None:
        return CellMeasurement(nuclei, files=files)
    found = find_all_objects(masks, names)
    return CellMeasurement(nuclei, found, draw_others(found, seed), files)


def draw_others(masks: Mapping[str, Path], seed: int, count: int = OTHERS) -> dict[str, list[str]]:
    """Return for every image `count` images whose masks are others in content, too: one mask may control many samples."""
    names = list(masks)
    contents = {name: fingerprint_file(path) for name, path in masks.items()}
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    drawn = {}
    for place, name in enumerate(order):
        following = (order[(place + step) % len(order)] for step in range(1, len(order)))
        different = (other for other in following if contents[other] != contents[name])
        drawn[name] = [other for other, _ in zip(different, range(count), strict=False)]
    return drawn
