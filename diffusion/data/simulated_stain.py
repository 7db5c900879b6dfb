"""A simulated immunohistochemistry of H&E, by a known rule, to try virtual staining on where there are no pairs of real stains.

It is not what any antibody would show: nuclei whose haematoxylin is dense turn brown, all others stay blue, and what eosin
had stained is pale blue.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.images import open_image
from diffusion.data.nuclei.segmentation import DECADES, segment_nuclei
from diffusion.formats import NETWORK_MPP
from diffusion.utils.files import atomic_write

POSITIVE_HAEMATOXYLIN = 0.75  # mean optical density, to base 10, of a nucleus that turns brown
BROWN, BLUE, GROUND = (
    1.4,
    0.8,
    0.3,
)  # how much haematoxylin counts, as DAB or itself, in brown and blue nuclei and beside them
WASH = 0.25  # how much haematoxylin there is where eosin was
IMAGES = ("hgsc_nest.jpg", "hgsc_stromal_he.jpg")  # of the demo's tissue
FOLDER, REGISTRATION = "simulated_dab", "same_pixels.csv"


def simulate_stain(pixels: np.ndarray, mpp: float = NETWORK_MPP) -> np.ndarray:
    """Return H&E pixels, uint8 (H, W, 3), recoloured as if dense nuclei were positive for DAB, uint8 (H, W, 3). mpp: microns per pixel."""
    from skimage.color import hed2rgb, rgb2hed

    density, eosin = np.moveaxis(np.clip(DECADES * rgb2hed(pixels)[..., :2], 0, None), -1, 0)
    nuclei = segment_nuclei(pixels, mpp)
    counts = np.maximum(np.bincount(nuclei.ravel()), 1)
    means = np.bincount(nuclei.ravel(), weights=density.ravel()) / counts
    positive = (means > POSITIVE_HAEMATOXYLIN)[nuclei] & (nuclei > 0)
    beside = GROUND * density + WASH * eosin
    haematoxylin = np.where(nuclei > 0, np.where(positive, 0.2, BLUE) * density, beside)
    stains = np.stack([haematoxylin, np.zeros_like(density), np.where(positive, BROWN * density, 0)], axis=-1)
    return (255 * np.clip(hed2rgb(stains / DECADES), 0, 1)).round().astype(np.uint8)


def write_simulated_stain(source: Path) -> list[Path]:
    """Write the simulated stain of the demo's images into a folder below theirs, PNG, and the registration of equal pixels.

    What is there is left alone. Returns the images. Raises MissingError, InputError for images that cannot be read.
    """
    folder = source / FOLDER
    folder.mkdir(exist_ok=True)
    with atomic_write(folder / REGISTRATION) as temporary:
        temporary.write_text("1,0,0\n0,1,0\n", encoding="utf-8")
    paths = [folder / f"{Path(name).stem}.png" for name in IMAGES]
    for name, path in zip(IMAGES, paths, strict=True):
        if path.is_file():
            continue
        pixels = np.asarray(open_image(source / name).convert("RGB"))
        with atomic_write(path) as temporary:
            Image.fromarray(simulate_stain(pixels)).save(temporary, format="PNG")
    return paths
