"""Stains of tissue in haematoxylin and eosin: their optical densities, and the colours that they have in one image.

Letters: H W sides of an image in pixels.
"""

from __future__ import annotations

import numpy as np

from diffusion.data.nuclei.segmentation import DECADES

# optical density, the mean over channels, above which a pixel is stained: 0.15 in natural logarithms (Macenko et al. 2009, for
# each channel; but eosin alone hardly absorbs red)
TISSUE_DENSITY = 0.065
FEWEST_PIXELS = 256  # stained, from which on colours of stains are estimated
PERCENT = 1.0  # of pixels that may lie beyond the two stains (Macenko et al. 2009)


def optical_density(pixels: np.ndarray) -> np.ndarray:
    """Return optical densities (..., 3), float64, of RGB pixels uint8 (..., 3): 0 where all light comes through."""
    return -np.log10(np.maximum(pixels, 1) / 255.0)


def stained(pixels: np.ndarray) -> np.ndarray:
    """Return which pixels (H, W) of an image, uint8 (H, W, 3), are stained tissue."""
    return optical_density(pixels).mean(-1) > TISSUE_DENSITY


def stain_densities(pixels: np.ndarray) -> np.ndarray:
    """Return the optical densities of haematoxylin and eosin, to base 10, (H, W, 2), float32, of an image, uint8 (H, W, 3).

    By the stain vectors of Ruifrok and Johnston 2001, the same for all images, so that densities of two can be compared.
    """
    from skimage.color import rgb2hed

    return DECADES * rgb2hed(pixels)[..., :2].astype(np.float32)


def estimate_stain_vectors(pixels: np.ndarray) -> np.ndarray:
    """Return the colours of haematoxylin and eosin in one image, uint8 (H, W, 3): unit vectors (2, 3) of optical density.

    They are the extremes, 1 % aside, of the directions of stained pixels within the plane of the two largest principal axes
    (Macenko et al. 2009). NaN where too little is stained.
    """
    density = optical_density(pixels)[stained(pixels)]
    if len(density) < FEWEST_PIXELS:
        return np.full((2, 3), np.nan)
    _, _, axes = np.linalg.svd(density, full_matrices=False)
    plane = axes[:2] * np.sign(axes[:2].sum(1, keepdims=True))  # densities are positive, and so is the first axis
    angles = np.arctan2(*(density @ plane.T).T[::-1])
    ends = [
        np.cos(angle) * plane[0] + np.sin(angle) * plane[1] for angle in np.percentile(angles, (PERCENT, 100 - PERCENT))
    ]
    vectors = np.clip(np.stack(ends), 0, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[np.argsort(-vectors[:, 0])]  # haematoxylin absorbs more red than eosin


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Return the angle of two vectors (3,) in degrees."""
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
