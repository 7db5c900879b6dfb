"""Masks of patches from what is known of their slide: a label image of all of it, or outlines of its nuclei."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from diffusion.data.features.masks import read_mask_image
from diffusion.data.nuclei.annotations import SUFFIXES as OUTLINE_SUFFIXES
from diffusion.data.nuclei.annotations import Outline, draw_outlines, read_outlines
from diffusion.data.slides.grid import Grid
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import abbreviate, read_json

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".npz")
TOLERANCE = 0.01  # by which the size of a label image may differ from its slide's


class PatchPlace(NamedTuple):
    """Where a patch is: its slide, its corner in pixels of the patches' resolution, how it is turned, and what all are cut from.

    width, height: of the slide, in the same pixels; mpp: microns each.
    """

    slide: str
    x: int
    y: int
    orientation: str | None
    width: int
    height: int
    mpp: float


def find_place(patches: Path, name: str, size: int) -> PatchPlace:
    """Return where a patch is, by the record of its slide and its own name. Raises MissingError, InputError."""
    folder = (patches / name).parent
    record = folder.parent.with_name(f"slides_{size}") / f"{folder.name}.json"
    values = read_json(record, "record of a slide", "cut the slide again with pixcell patches")
    position = re.fullmatch(r"(\d+)_(\d+)", Path(name).stem)
    dimensions = re.match(r"(\d+)x(\d+)", str(values.get("note", "")))
    try:
        settings = values["settings"]
        grid = Grid(settings["size"], settings["step"], tuple(settings["area"]))
        mpp, orientation = float(settings["mpp"]), settings.get("orientation")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{record} is no record of a slide ({error!r}); cut the slide again") from None
    if position is None or dimensions is None:
        raise InputError(f"{name} is no place of a slide's grid, or {record} does not say how large the slide is")
    width, height = int(dimensions[1]), int(dimensions[2])
    corner = grid.corner(int(position[1]), int(position[2]), width, height)
    if corner is None:
        raise InputError(f"{name} is outside of the grid of its slide, as {record} has it; cut the slide again")
    return PatchPlace(folder.name, *corner, orientation, width, height, mpp)


class SlideMask(Protocol):
    """What is known of the objects of one slide."""

    def labels(self, place: PatchPlace, size: int) -> np.ndarray:
        """Return the objects of a patch as whole numbers, int32 (size, size)."""
        ...


@dataclass(frozen=True)
class LabelImage:
    """A label image of a slide, whole numbers (H, W), with `mpp` microns a pixel."""

    path: Path
    values: np.ndarray
    mpp: float

    def labels(self, place: PatchPlace, size: int) -> np.ndarray:
        """Cut and scale the square of a patch, by the nearest pixel. Raises InputError for an image of another slide's size."""
        scale = self.mpp / place.mpp
        height, width = self.values.shape
        if not (
            np.isclose(width * scale, place.width, TOLERANCE) and np.isclose(height * scale, place.height, TOLERANCE)
        ):
            raise InputError(
                f"{self.path} has {width} x {height} pixels of {self.mpp:g} um: expected "
                f"{place.width / scale:.0f} x {place.height / scale:.0f}, those of the slide {place.slide}; give its resolution "
                "with --mask-mpp"
            )
        across, down = width / place.width, height / place.height  # exact, whatever was rounded
        columns = np.minimum((place.x + np.arange(size) + 0.5) * across, width - 1).astype(int)
        rows = np.minimum((place.y + np.arange(size) + 0.5) * down, height - 1).astype(int)
        return self.values[np.ix_(rows, columns)].astype(np.int32)


@dataclass(frozen=True)
class Outlines:
    """Outlines of a slide's objects, in pixels of `mpp` microns; bounds (n, 4): the smallest x and y of each, and the largest.

    classes: those whose numbers are drawn, from 1 on; none to draw the numbers of objects.
    """

    path: Path
    outlines: Sequence[Outline]
    bounds: np.ndarray
    mpp: float
    classes: Sequence[str] = ()

    @staticmethod
    def read(path: Path, mpp: float, classes: Sequence[str] = (), by_class: bool = False) -> Outlines:
        """Read a file; classes: those to take, all where none are named; by_class: draw their numbers.

        Raises MissingError, InputError, also for a file without any object of the classes.
        """
        outlines = read_outlines(path)
        kinds = sorted({outline.kind for outline in outlines})
        outlines = [outline for outline in outlines if not classes or outline.kind in classes]
        if not outlines:
            raise InputError(
                f"{path} has no object of the classes {', '.join(classes)}: it has {abbreviate(kinds, 10)}; name some with --classes"
            )
        bounds = np.array([[*outline.ring.min(0), *outline.ring.max(0)] for outline in outlines])
        return Outlines(path, outlines, bounds, mpp, classes if by_class else ())

    def labels(self, place: PatchPlace, size: int) -> np.ndarray:
        """Draw the objects of a patch. Raises InputError for outlines that reach beyond the slide, so of another scale."""
        scale = self.mpp / place.mpp
        reach, sides = self.bounds[:, 2:].max(0) * scale, np.array([place.width, place.height])
        if (reach > sides * (1 + TOLERANCE) + 1).any():
            raise InputError(
                f"{self.path} has outlines as far as {reach[0]:.0f}, {reach[1]:.0f} in pixels of the patches, of which the slide "
                f"{place.slide} has {place.width} x {place.height}; give the resolution of its own pixels with --mask-mpp"
            )
        low = np.array([place.x, place.y]) / scale
        high = low + size / scale
        near = np.all(np.hstack([self.bounds[:, 2:] >= low, self.bounds[:, :2] <= high]), axis=1).tolist()
        outlines = [outline for outline, is_near in zip(self.outlines, near, strict=True) if is_near]
        return draw_outlines(outlines, float(low[0]), float(low[1]), scale, size, self.classes)


def open_slide_mask(path: Path, mpp: float, classes: Sequence[str] = (), by_class: bool = False) -> SlideMask:
    """Open a label image, or a file of outlines, as Outlines.read does. Raises MissingError, InputError."""
    if path.suffix.lower() in OUTLINE_SUFFIXES:
        return Outlines.read(path, mpp, classes, by_class)
    if classes:
        raise InputError(f"{path} is a label image, and --classes are of annotations; leave them out")
    return LabelImage(path, read_labels(path), mpp)


def read_labels(path: Path) -> np.ndarray:
    """Read a label image (H, W): an image, an .npy, or an .npz with one array. Raises MissingError, InputError."""
    if not path.is_file():
        raise MissingError(f"no label image at {path}")
    if path.suffix.lower() not in (".npy", ".npz"):
        return read_mask_image(path)
    try:
        stored = np.load(path, allow_pickle=False)
        values = stored if isinstance(stored, np.ndarray) else stored[stored.files[0]]
    except (ValueError, OSError, EOFError, IndexError) as error:
        raise InputError(f"{path} is not a whole file of one array ({error})") from None
    values = np.squeeze(values)
    if values.ndim != 2 or values.dtype.kind not in "iub":
        raise InputError(f"{path} holds {values.dtype} of shape {values.shape}: expected whole numbers (H, W)")
    return values.astype(np.int32)


def turn(labels: np.ndarray, orientation: str | None) -> np.ndarray:
    """Turn or mirror labels as the patches of a cohort were."""
    if orientation is None:
        return labels
    image = Image.fromarray(labels.astype(np.int32), "I")
    return np.asarray(image.transpose(Image.Transpose[orientation.upper()]))
