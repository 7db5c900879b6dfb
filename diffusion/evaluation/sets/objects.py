"""Objects of images, such as nuclei, in the files of a folder: label images, binary masks, outlines. Letters: k windows of an image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from diffusion.data.nuclei.annotations import SUFFIXES as OUTLINE_SUFFIXES
from diffusion.data.nuclei.annotations import draw_outlines, read_outlines
from diffusion.data.nuclei.segmentation import split_touching
from diffusion.data.nuclei.slide_masks import LABEL_SUFFIXES, read_labels
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import abbreviate


def find_objects_file(folder: Path, name: str) -> Path:
    """Return the file of an image's objects in a folder: a label image, a mask or outlines of its name. Raises MissingError."""
    for suffix in (*LABEL_SUFFIXES, *OUTLINE_SUFFIXES):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise MissingError(f"no mask of {name} in {folder}: expected {name}.png, .npy, .geojson, ...")


def find_all_objects(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the file of every image's objects. Raises MissingError, with how many have none."""
    found, missing = {}, []
    for name in names:
        try:
            found[name] = find_objects_file(folder, name)
        except MissingError:
            missing.append(name)
    if missing:
        raise MissingError(
            f"{len(missing)} of {len(missing) + len(found)} images have no mask in {folder}: {abbreviate(missing)}; expected "
            "files of their names"
        )
    return found


def read_objects(path: Path, mpp: float, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read the objects of an image as the numbers of its complete windows (k, 256, 256), row by row.

    Of a label image, each connected part of one number is an object; those of a binary mask, which may touch, are cut as found
    nuclei are, at `mpp` microns a pixel. size: rows and columns of the image. Raises MissingError, InputError for another size.
    """
    if path.suffix.lower() in OUTLINE_SUFFIXES:
        if size is None:
            raise InputError(f"{path}: outlines do not say how large their image is; give masks")
        labels = draw_outlines(read_outlines(path), 0, 0, 1.0, max(size))[: size[0], : size[1]]
    else:
        labels = read_labels(path)
    if labels.dtype.kind not in "iub" or labels.min() < 0:
        raise InputError(f"{path} holds {labels.dtype}, the least {labels.min()}: expected whole numbers from 0 on")
    if size is not None and labels.shape != size:
        raise InputError(
            f"{path} has {labels.shape[1]} x {labels.shape[0]} pixels, its image {size[1]} x {size[0]}: expected the same"
        )
    down, across = labels.shape[0] // WINDOW, labels.shape[1] // WINDOW
    labels = _as_objects(labels, mpp)[: down * WINDOW, : across * WINDOW]
    return labels.reshape(down, WINDOW, across, WINDOW).swapaxes(1, 2).reshape(-1, WINDOW, WINDOW)


def _as_objects(labels: np.ndarray, mpp: float) -> np.ndarray:
    """Return the objects of a mask or label image (H, W) as numbers."""
    from skimage.measure import label

    if len(np.unique(labels[labels > 0])) == 1:
        return split_touching(labels > 0, mpp)
    return np.asarray(label(labels, connectivity=1))
