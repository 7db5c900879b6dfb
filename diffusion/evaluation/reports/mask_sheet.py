"""A picture of masks, the nuclei found in the samples made for them, the samples, and the tissue of the masks."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
from PIL import Image

from diffusion.evaluation.measure import REAL, SYNTHETIC, CellOptions
from diffusion.evaluation.sets.cells import NucleiSource, find_objects_file, image_size, read_objects
from diffusion.evaluation.sets.image_set import ImageSet, decode_image

COLUMNS, CELL, GAP = 8, 128, 4  # pixels


def mask_grid(images: Mapping[str, ImageSet], options: CellOptions, seed: int) -> Image.Image:
    """Return a picture of at most 8 masks that are drawn by `seed`, each in a column. Raises MissingError, InputError."""
    assert options.masks is not None
    names = sorted(images[SYNTHETIC].files)
    chosen = sorted(random.Random(seed).sample(names, min(COLUMNS, len(names))))
    source = NucleiSource(options.mpp, options.synthetic_nuclei)
    columns = []
    for name in chosen:
        windows = {kind: _windows(images[kind], name) for kind in (SYNTHETIC, REAL)}
        synthetic = windows[SYNTHETIC]
        if synthetic is None:  # a file that cannot be read, which is named elsewhere
            continue
        path = images[SYNTHETIC].files[name]
        mask = read_objects(find_objects_file(options.masks, name), options.mpp, image_size(path))[0]
        found = source.find(name, path, synthetic)[0]
        real = windows[REAL]
        columns.append([_picture(mask), _picture(found), synthetic[0], None if real is None else real[0]])
    rows = 4 if any(column[3] is not None for column in columns) else 3
    pitch = CELL + GAP
    grid = Image.new("RGB", (max(len(columns), 1) * pitch - GAP, rows * pitch - GAP), "white")
    for x, column in enumerate(columns):
        for y, pixels in enumerate(column[:rows]):
            if pixels is not None:
                grid.paste(Image.fromarray(pixels).resize((CELL, CELL)), (x * pitch, y * pitch))
    return grid


def _windows(images: ImageSet, name: str) -> np.ndarray | None:
    """Return the windows of an image, uint8 (k, 256, 256, 3), if it is there and can be read."""
    return decode_image(images.files[name], images.fit).windows if name in images.files else None


def _picture(labels: np.ndarray) -> np.ndarray:
    """Return objects as white on black, uint8 (H, W, 3)."""
    return np.repeat(255 * (labels > 0).astype(np.uint8)[..., None], 3, axis=2)
