"""The images of patches: the one place that names, lists, writes and reads them.

`ROOT/patches/<dataset>/<cohort>/single_<size>/<slide>/<column>_<row>.jpeg`, as DSMIL lays them out: column and row of the
patch in the slide's grid, counted from 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.errors import InputError, MissingError
from diffusion.files import written_aside


def patch_file(folder: Path, column: int, row: int) -> Path:
    return folder / f"{column}_{row}.jpeg"


def neighbour(name: str, right: int, down: int) -> str | None:
    """The name of the patch so many places of the grid further right and down; None where names are no places."""
    path = Path(name)
    place = re.fullmatch(r"(\d+)_(\d+)", path.stem)
    return patch_file(path.parent, int(place[1]) + right, int(place[2]) + down).as_posix() if place else None


def list_patches(patches: Path, dataset: str, size: int) -> Iterator[str]:
    """Names, relative to ROOT/patches, of a data set's patches, in natural order: 128_0 before 1024_0.

    One folder after the other: no more than a folder's entries are in memory.
    """
    if (patches / dataset).is_dir():
        yield from _walk(patches / dataset, dataset, f"single_{size}", inside=False)


def _walk(folder: Path, name: str, wanted: str, inside: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        kept = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    for entry, is_folder in sorted(kept, key=lambda each: natural_key(each[0])):
        if is_folder:
            yield from _walk(folder / entry, f"{name}/{entry}", wanted, inside or entry == wanted)
        elif inside and entry.endswith(".jpeg"):
            yield f"{name}/{entry}"


def natural_key(name: str) -> tuple:
    """Sorts paths folder by folder, and the numbers in them as numbers; paths alike in that come in plain order."""
    return tuple(_natural(part) for part in name.split("/")), name


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", text))


def save_patch(image: Image.Image, path: Path, quality: int) -> None:
    """Write a JPEG without colour subsampling, aside and then in place, so that a patch that is there is whole."""
    with written_aside(path) as temporary:
        image.save(temporary, format="JPEG", quality=quality, subsampling=0)


def read_patch(path: Path, size: int) -> np.ndarray:
    """The pixels of a patch, uint8 (size, size, 3). Raises MissingError, or InputError for one unreadable, not RGB, or of another size."""
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except FileNotFoundError:
        raise MissingError(f"no image {path}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable image ({error})") from error
    if mode != "RGB" or pixels.shape != (size, size, 3):
        raise InputError(
            f"{path} is a {mode} image of {pixels.shape[1]} x {pixels.shape[0]}: expected RGB, {size} x {size}"
        )
    return pixels
