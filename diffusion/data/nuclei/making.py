"""Masks of indexed patches: from their pixels, or from label images and outlines of their slides; one PNG file a patch."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from diffusion.data.features.loose import feature_path, features_folder
from diffusion.data.features.masks import write_mask
from diffusion.data.nuclei.segmentation import renumber, segment_nuclei
from diffusion.data.nuclei.slide_masks import (
    LABEL_SUFFIXES,
    OUTLINE_SUFFIXES,
    SlideMask,
    find_place,
    open_slide_mask,
    turn,
)
from diffusion.data.slides.patches import read_patch
from diffusion.formats import PATCHES_DIR
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import abbreviate

# of the files of a slide's objects, as programs name them
ENDINGS = (
    *("cells", "cell_detection", "cell_segmentation", "detections", "inst", "inst_mask", "instances"),
    *("label", "labels", "mask", "masks", "nuclei", "type_mask", "types"),
)
AT_ONCE = 256  # patches handed out to the workers
OPEN_SLIDES = 2  # label images of slides that one process keeps in memory


class MaskOutcome(NamedTuple):
    """What became of a patch: how many objects its mask has, None for one that was there or could not be made; and why not."""

    name: str
    objects: int | None
    error: str | None = None


@dataclass(frozen=True)
class MaskMaker:
    """How the masks of patches of one size are made.

    source: a label image, a file of outlines, or a folder of them, named after slides; None: the patches' own pixels.
    mpp: microns per pixel of the source, or of the patches. kind: what is stored, as `features.masks.MaskKind` calls it.
    classes: of outlines, in the order of their numbers. suffix: ending of the files.
    """

    root: Path
    patch_size: int
    features_dir: str | None = None
    suffix: str = "mask"
    kind: Literal["binary", "labels", "types"] = "binary"
    source: Path | None = None
    mpp: float = 0.5
    classes: Sequence[str] = field(default_factory=tuple)

    def path(self, name: str) -> Path:
        """Return the mask's file of a patch."""
        return feature_path(features_folder(self.root, self.features_dir), name, self.suffix).with_suffix(".png")

    def make(self, name: str) -> MaskOutcome:
        """Make the mask of a patch, unless it is there; errors are part of the outcome."""
        path = self.path(name)
        if path.is_file():
            return MaskOutcome(name, None)
        try:
            labels = self.labels(name)
        except InputError as error:
            return MaskOutcome(name, None, str(error))
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.kind == "labels":
            labels = renumber(labels)  # of a whole slide's, few are in a patch
        write_mask(path, 255 * (labels > 0).astype(np.uint8) if self.kind == "binary" else labels)
        return MaskOutcome(name, count_objects(labels))

    def labels(self, name: str) -> np.ndarray:
        """Return the objects of a patch as whole numbers, int32 (S, S). Raises MissingError, InputError."""
        patches = self.root / PATCHES_DIR
        if self.source is None:
            return segment_nuclei(read_patch(patches / name, self.patch_size), self.mpp)
        place = find_place(patches, name, self.patch_size)
        file = find_slide_file(self.source, place.slide)
        mask = _open_cached(file, self.mpp, tuple(self.classes), self.kind == "types")
        labels = mask.labels(place, self.patch_size)
        return turn(labels, place.orientation)


def count_objects(labels: np.ndarray) -> int:
    """Return the number of objects: connected parts of one number."""
    from skimage.measure import label

    return int(np.asarray(label(labels, connectivity=1)).max())


@lru_cache(maxsize=OPEN_SLIDES)
def _open_cached(path: Path, mpp: float, classes: tuple[str, ...], by_class: bool) -> SlideMask:
    return open_slide_mask(path, mpp, classes, by_class)


def find_slide_file(source: Path, slide: str) -> Path:
    """Return the file of a slide: the one named, or in a folder that of its name, or of its name and one of ENDINGS.

    Raises MissingError, InputError.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise MissingError(f"no label images or annotations at {source}")
    known = [path for path in source.iterdir() if path.suffix.lower() in (*LABEL_SUFFIXES, *OUTLINE_SUFFIXES)]
    same = [path for path in known if path.stem == slide]
    same = same or [
        path for path in known if path.stem in {f"{slide}{mark}{ending}" for mark in "_." for ending in ENDINGS}
    ]
    if not same:
        raise MissingError(
            f"no label image or annotations of the slide {slide} in {source}: expected {slide}.png, or .geojson ..."
        )
    if len(same) > 1:
        names = abbreviate(sorted(path.name for path in same))
        raise InputError(f"{source} has several files of the slide {slide}: {names}; keep one of them there")
    return same[0]


def make_masks(maker: MaskMaker, names: Iterable[str], workers: int) -> Generator[MaskOutcome]:
    """Make the masks of patches, in order; `workers` processes share them; with one, this process makes them itself."""
    if workers == 1:
        yield from map(maker.make, names)
        return
    remaining = iter(names)
    with ProcessPoolExecutor(workers) as pool:
        while part := list(islice(remaining, AT_ONCE)):
            yield from pool.map(maker.make, part, chunksize=8)
