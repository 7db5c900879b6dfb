"""What every window of a set of images in immunohistochemistry shows of its stain, and how that agrees with real tissue.

Letters: N windows of 256, k windows of an image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffusion.data.nuclei.immunohistochemistry import (
    NUCLEUS_DENSITY,
    POSITIVE_DENSITY,
    ihc_densities,
    positive_area,
    segment_ihc_nuclei,
)
from diffusion.evaluation.metrics.cells import dice
from diffusion.evaluation.metrics.pixels import psnr, ssim
from diffusion.evaluation.sets.cache import FileRecord, hash_files
from diffusion.evaluation.sets.cells import NucleiSource, draw_others
from diffusion.evaluation.sets.image_set import DecodedImage, ImageSet
from diffusion.evaluation.sets.measuring import Table, decode_unresized
from diffusion.evaluation.sets.objects import find_all_objects
from diffusion.utils.errors import InputError

STAIN = "stain"  # the metric, which takes the place of an encoder in caches and tables
VERSION = 1  # of what is measured, and how
OF_IMAGE = ("nuclei", "positive_nuclei", "positive_area")
OF_PAIR = ("dice", "dice_of_others", "psnr", "ssim")
COLUMNS = (*OF_IMAGE, *OF_PAIR)
OTHERS = 3  # real images of other names that each is compared with, too; each takes as long as the image itself


class StainTable(Table):
    """The stain of every window of a set, (N, 7) in the order of COLUMNS.

    nuclei: how many, and how many of them are positive for DAB; positive_area: share of the window, 0 to 1. Of a synthetic image, with
    the real one of its name: Dice of the positive areas, the mean Dice with real images of other names, PSNR in dB, SSIM.
    NaN where there is no real image, and Dice where neither has a positive area.
    """

    names: ClassVar[tuple[str, ...]] = COLUMNS

    @property
    def positive_share(self) -> np.ndarray:
        """Return the share of nuclei that are positive (N,); NaN where there is no nucleus."""
        nuclei, positive = self.column("nuclei"), self.column("positive_nuclei")
        return np.divide(positive, nuclei, out=np.full(len(nuclei), np.nan), where=nuclei > 0)


def measure_stain(pixels: np.ndarray, labels: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Measure one window, uint8 (256, 256, 3), with its nuclei as numbers and its positive area (256, 256): (3,), as OF_IMAGE.

    A nucleus is positive where the mean of its pixels' densities of DAB is above POSITIVE_DENSITY.
    """
    dab = ihc_densities(pixels)[..., 1]
    areas = np.bincount(labels.ravel())
    present = np.flatnonzero(areas[1:]) + 1
    densities = np.bincount(labels.ravel(), dab.ravel())[present] / areas[present]
    positive = (densities > POSITIVE_DENSITY).sum()
    return np.array([len(present), positive, area.mean()])


@dataclass(frozen=True)
class StainMeasurement:
    """How a set is measured; in a cache of features it stands where an encoder does.

    nuclei: where they come from. partners: the real image of each synthetic one, by its name; others: names of real images of other
    content, by that name. registered: pairs show the same section, so that their pixels are compared.
    """

    nuclei: NucleiSource
    partners: Mapping[str, Path] = field(default_factory=dict)
    others: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    registered: bool = False
    name: str = STAIN
    width: int = len(COLUMNS)
    dtype: str = "float32"
    view: str = ""

    @property
    def fingerprint(self) -> str:
        """Return a hash of everything that values depend on beside the images."""
        own: list[Any] = [VERSION, POSITIVE_DENSITY, NUCLEUS_DENSITY, self.nuclei.mpp, hash_files(self.files)]
        own += [hash_files(self.partners), dict(self.others), self.registered]
        return hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=16).hexdigest()

    def measure(self, item: tuple[str, Path], fit: str) -> tuple[np.ndarray, FileRecord]:
        """Return the windows of an image file (k, 7), and the result of reading it. Raises InputError for a pair of two sizes."""
        name, path = item
        image = decode_unresized(path, fit, self.name)
        if image.windows is None:
            return np.empty((0, self.width)), FileRecord(0, image.format, image.wrong, image.refused)
        labels, areas = self.nuclei.find(name, image), self._areas(image.windows)
        rows = np.full((len(image.windows), self.width), np.nan)
        rows[:, : len(OF_IMAGE)] = [measure_stain(*each) for each in zip(image.windows, labels, areas, strict=True)]
        if name in self.partners:
            rows[:, len(OF_IMAGE) :] = self._compare(name, path, image, areas, fit)
        return rows, FileRecord(len(rows), image.format, "", False)

    def _areas(self, windows: np.ndarray) -> np.ndarray:
        """Return the positive areas of windows, truth values (k, 256, 256)."""
        return np.stack([positive_area(window, self.nuclei.mpp) for window in windows])

    def _compare(self, name: str, path: Path, image: DecodedImage, found: np.ndarray, fit: str) -> np.ndarray:
        """Return the agreement of windows with the real image of their name, and with those of others, (k, 4)."""
        real = decode_unresized(self.partners[name], fit, self.name)
        assert image.windows is not None
        if real.windows is None:  # which is named among the real images
            return np.full((len(image.windows), len(OF_PAIR)), np.nan)
        if real.size != image.size:
            sizes = [f"{width} x {height}" for height, width in (image.size, real.size)]
            raise InputError(
                f"{path} has {sizes[0]} pixels, the real {self.partners[name]} {sizes[1]}: expected the same of a pair"
            )
        decoded = (decode_unresized(self.partners[other], fit, self.name).windows for other in self.others[name])
        others = [self._areas(windows) for windows in decoded if windows is not None]
        rows = []
        for i, (own, area) in enumerate(zip(found, self._areas(real.windows), strict=True)):
            by_chance = np.array([dice_of_areas(other[i], own) for other in others if i < len(other)])
            known = by_chance[np.isfinite(by_chance)]
            chance = float(known.mean()) if len(known) else np.nan
            pair = (real.windows[i], image.windows[i])
            alike = (psnr(*pair), ssim(*pair)) if self.registered else (np.nan, np.nan)
            rows.append([dice_of_areas(area, own), chance, *alike])
        return np.array(rows)


def dice_of_areas(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the Dice overlap of two positive areas (H, W), of truth values; NaN where both are empty."""
    return dice(real, synthetic) if real.any() or synthetic.any() else np.nan


def plan_stain_measurement(
    images: ImageSet,
    mpp: float,
    nuclei: Path | None = None,
    real: ImageSet | None = None,
    registered: bool = False,
    seed: int = 0,
) -> StainMeasurement:
    """Look for the files of nuclei, and of the real images that each of a synthetic set is compared with.

    nuclei: folder of label images or outlines; None: they are found by their stain, at `mpp` microns a pixel. real: the real set, where
    `images` is the synthetic one. seed: draws which other images each is compared with. Raises MissingError for nuclei that are
    not there, InputError where no image has a pair.
    """
    files = {} if nuclei is None else find_all_objects(nuclei, images.files)
    source = NucleiSource(mpp, nuclei, segment_ihc_nuclei)
    if real is None:
        return StainMeasurement(source, files=files)
    partners = {name: real.files[name] for name in images.files if name in real.files}
    if not partners:
        raise InputError(
            f"no image in {images.folder} has the name of one in {real.folder}: the metric {STAIN} compares pairs, expected "
            "synthetic images under the names of the real ones"
        )
    return StainMeasurement(source, partners, draw_others(partners, seed, OTHERS), files, registered)
