"""The images of patches: the one place that names, lists, writes and reads them.

`ROOT/patches/<dataset>/<cohort>/single_<size>/<slide>/<column>_<row>.jpeg`, as DSMIL lays them out: column and row of the
patch in the slide's grid, counted from 0. We write .jpeg; patches of others may be .jpg or .png, in either case.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.images import open_image
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write
from diffusion.utils.folders import SkippedEntries, walk_folders

PATCH_SUFFIXES = (".jpeg", ".jpg", ".png")
UNSUPPORTED_SUFFIXES = frozenset((".bmp", ".gif", ".jp2", ".jpe", ".tif", ".tiff", ".webp"))  # which patches cannot be
SIZE_FOLDER = re.compile(r"single_(\d+)")
MASK_ENDING = re.compile(r"_mask\w*$")  # of the masks that lie beside patches


def patch_path(folder: Path, column: int, row: int) -> Path:
    """Return the file of the patch at a place of the grid, in a slide's folder."""
    return folder / f"{column}_{row}.jpeg"


def neighbour_name(name: str, right: int, down: int) -> str | None:
    """Return the name of the patch so many places of the grid further right and down; None where names are no places."""
    path = Path(name)
    place = re.fullmatch(r"(\d+)_(\d+)", path.stem)
    if place is None:
        return None
    return patch_path(path.parent, int(place[1]) + right, int(place[2]) + down).with_suffix(path.suffix).as_posix()


def list_patches(patches: Path, dataset: str, size: int) -> Iterator[str]:
    """Yield the names, relative to ROOT/patches, of a data set's patches, in natural order: 128_0 before 1024_0.

    One folder after the other: no more than a folder's entries are in memory. What cannot be a patch is named in the log.
    """
    if not (patches / dataset).is_dir():
        return
    skipped, wanted = SkippedEntries(), f"single_{size}"

    def enter(name: str) -> bool:
        return name == wanted or not SIZE_FOLDER.fullmatch(name)

    for folder, names in walk_folders(patches / dataset, skipped, enter):
        place = folder.relative_to(patches)
        if wanted in place.parts:
            yield from _filter_patches(names, place.as_posix(), skipped)
    skipped.report()


def _filter_patches(names: list[str], folder: str, skipped: SkippedEntries) -> Iterator[str]:
    """Yield the patches among the files of one folder."""
    stems = set()
    for name in names:
        stem, suffix = os.path.splitext(name)
        suffix = suffix.lower()
        if is_mask(stem, stems):
            continue
        if suffix in UNSUPPORTED_SUFFIXES:
            skipped.add(f"images that are not {', '.join(PATCH_SUFFIXES)}", f"{folder}/{name}")
        elif suffix in PATCH_SUFFIXES and stem in stems:  # its features would be the same files
            skipped.add("images with the name of another beside them", f"{folder}/{name}")
        elif suffix in PATCH_SUFFIXES:
            stems.add(stem)
            yield f"{folder}/{name}"


def is_mask(stem: str, stems: Collection[str]) -> bool:
    """Tell whether a file is the mask of another beside it: 3_4_mask of 3_4. stems: of the files beside it."""
    image = MASK_ENDING.sub("", stem)
    return image != stem and image in stems


def list_patch_sizes(folder: Path) -> list[int]:
    """Return the sizes of patches, in pixels, for which there are folders, of ROOT/patches or of a data set in it."""
    levels = ("single_*", "*/single_*", "*/*/single_*")
    found = (SIZE_FOLDER.fullmatch(path.name) for level in levels for path in folder.glob(level))
    return sorted({int(match[1]) for match in found if match})


def save_patch(image: Image.Image, path: Path, quality: int) -> None:
    """Write a JPEG without colour subsampling, atomically: a patch that is there is complete."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="JPEG", quality=quality, subsampling=0)


def read_patch(path: Path, size: int) -> np.ndarray:
    """Read the pixels of a patch, uint8 (size, size, 3).

    Raises MissingError, or InputError for one that is unreadable, not RGB, or of another size.
    """
    image = open_image(path)
    if image.mode != "RGB" or image.size != (size, size):
        raise InputError(
            f"{path} is a {image.mode} image of {image.width} x {image.height}: expected RGB, {size} x {size}"
        )
    return np.asarray(image)
