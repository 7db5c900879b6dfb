"""Images with masks of their nuclei, in memory. Letters: N windows of 256."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from diffusion.evaluation.metrics.intervals import FEW_GROUPS
from diffusion.evaluation.sets.image_set import ImageSet, decode_image
from diffusion.evaluation.sets.objects import find_objects_file, read_objects
from diffusion.formats import CONTROL_DIR, NETWORK_MPP
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import abbreviate

MASK_ENDING = "_mask"  # of masks beside images, as pixcell masks names them


@dataclass(frozen=True)
class MaskedImages:
    """Windows uint8 (N, 256, 256, 3), their nuclei as numbers (N, 256, 256), and the folder of each one's image (N,).

    slides: folders below that of the set, which are taken for slides; of images that lie in none, the images themselves.
    """

    pixels: np.ndarray
    labels: np.ndarray
    slides: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def concat(self, other: MaskedImages) -> MaskedImages:
        """Return the windows of this set, then those of another one."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return MaskedImages(*(np.concatenate(pair) for pair in pairs))


def load_masked_images(images: ImageSet, mpp: float = NETWORK_MPP) -> MaskedImages:
    """Read all images of a set with their masks, of `mpp` microns a pixel.

    A mask is `<image>_mask.png` or `.npy` beside the image, or has its name in the folder `control` beside that of the set, where
    `pixcell sample` writes it. Raises MissingError, with the number of images that have none, and InputError for one of another size.
    """
    places = {name: find_mask(images, name) for name in images.files}
    if missing := [name for name, place in places.items() if place is None]:
        raise MissingError(
            f"{len(missing)} of {len(places)} images of {images.folder} have no mask, such as {abbreviate(missing)}: expected "
            f"<image>{MASK_ENDING}.png beside each, or {CONTROL_DIR}/<image>.png beside the folder"
        )
    pixels, labels, slides = [], [], []
    for name, path in images.files.items():
        image = decode_image(path, images.fit)
        if image.windows is None:
            raise InputError(f"{path} {image.wrong}")
        pixels.append(image.windows)
        labels.append(read_objects(cast(Path, places[name]), mpp, image.size))
        slide = slide_of(name)
        slides += [f"{slide}/" if slide else name] * len(image.windows)
    return MaskedImages(np.concatenate(pixels), np.concatenate(labels).astype(np.int32), np.array(slides))


def slide_of(name: str) -> str:
    """Return the folder of an image, which stands for its slide; empty where it lies in none."""
    return name.rpartition("/")[0]


def find_mask(images: ImageSet, name: str) -> Path | None:
    """Return the file of an image's mask; None where there is none."""
    path = images.files[name]
    for folder, stem in (
        (path.parent, f"{path.stem}{MASK_ENDING}"),
        (images.folder.absolute().parent / CONTROL_DIR, name),
    ):
        try:
            return find_objects_file(folder, stem)
        except MissingError:
            continue
    return None


def resample_slides(images: MaskedImages) -> tuple[MaskedImages, str]:
    """Return a set, and in words what is resampled for intervals: its slides; of a single one, the windows, which are alike."""
    names = set(images.slides.tolist())
    slides = sum(name.endswith("/") for name in names)
    few = "" if len(names) >= FEW_GROUPS else f"; with fewer than {FEW_GROUPS} they are too narrow"
    if len(names) > 1:
        kind = "slides" if slides == len(names) else "slides and images that lie in no folder"
        return images, f"{len(names)} {kind}{few}"
    windows = replace(images, slides=np.arange(len(images)).astype(str))
    return windows, f"{len(windows)} windows, which are of one slide: too narrow, since these are alike"
