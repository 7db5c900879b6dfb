"""Pictures of windows with their masks, and what was found in them: a window in each column, from above to below what belongs to it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from diffusion.data.nuclei.immunohistochemistry import positive_area
from diffusion.evaluation.measure import REAL, SYNTHETIC, CellOptions
from diffusion.evaluation.sets.cells import NucleiSource
from diffusion.evaluation.sets.image_set import DecodedImage, ImageSet, decode_image
from diffusion.evaluation.sets.objects import find_objects_file, read_objects

COLUMNS, CELL, GAP = 8, 128, 4  # windows of a picture; pixels
OUTLINE = (0, 220, 60)  # green, which is in no stain


def mask_grid(images: Mapping[str, ImageSet], options: CellOptions, seed: int) -> Image.Image:
    """Return a picture of at most 8 masks that are drawn by `seed`, with the nuclei found in the sample, the sample, and real tissue.

    Raises MissingError, InputError.
    """
    assert options.masks is not None
    names = sorted(images[SYNTHETIC].files)
    chosen = sorted(random.Random(seed).sample(names, min(COLUMNS, len(names))))
    source = NucleiSource(options.mpp, options.synthetic_nuclei)
    columns = []
    for name in chosen:
        sample, real = (_decode(images[kind], name) for kind in (SYNTHETIC, REAL))
        if sample is None or sample.windows is None:  # a file that cannot be read, which is named elsewhere
            continue
        mask = read_objects(find_objects_file(options.masks, name), options.mpp, sample.size)[0]
        tissue = None if real is None or real.windows is None else real.windows[0]
        columns.append([label_picture(mask), label_picture(source.find(name, sample)[0]), sample.windows[0], tissue])
    return window_grid(columns)


def stain_grid(images: Mapping[str, ImageSet], mpp: float, seed: int) -> Image.Image:
    """Return a picture of at most 8 pairs that are drawn by `seed`: the real image, its positive area, the synthetic one, its own.

    mpp: microns per pixel.
    """
    names = sorted(images[REAL].files.keys() & images[SYNTHETIC].files.keys())
    chosen = sorted(random.Random(seed).sample(names, min(COLUMNS, len(names))))
    columns = []
    for name in chosen:
        pair = [_decode(images[kind], name) for kind in (REAL, SYNTHETIC)]
        windows = [each.windows[0] for each in pair if each is not None and each.windows is not None]
        if len(windows) == len(pair):  # else a file that cannot be read, which is named elsewhere
            columns.append(
                [picture for each in windows for picture in (each, outlined(each, positive_area(each, mpp)))]
            )
    return window_grid(columns)


def outlined(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a window, uint8 (H, W, 3), with the outline of a mask (H, W)."""
    from skimage.segmentation import find_boundaries

    return np.where(find_boundaries(mask)[..., None], np.array(OUTLINE, np.uint8), pixels)


def window_grid(columns: Sequence[Sequence[np.ndarray | None]]) -> Image.Image:
    """Return one picture of columns of windows, uint8 (H, W, 3); None leaves a place empty, and a row of these is left out."""
    rows = max((i + 1 for column in columns for i, each in enumerate(column) if each is not None), default=1)
    pitch = CELL + GAP
    grid = Image.new("RGB", (max(len(columns), 1) * pitch - GAP, rows * pitch - GAP), "white")
    for x, column in enumerate(columns):
        for y, pixels in enumerate(column):
            if pixels is not None:
                grid.paste(Image.fromarray(pixels).resize((CELL, CELL)), (x * pitch, y * pitch))
    return grid


def label_picture(labels: np.ndarray) -> np.ndarray:
    """Return objects (H, W) as white on black, uint8 (H, W, 3)."""
    return np.repeat(255 * (labels > 0).astype(np.uint8)[..., None], 3, axis=2)


def _decode(images: ImageSet, name: str) -> DecodedImage | None:
    return decode_image(images.files[name], images.fit) if name in images.files else None
