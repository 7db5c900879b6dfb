"""Tissue in immunohistochemistry: densities of haematoxylin and DAB, where DAB is positive, and nuclei, blue or brown.

Letters: H W sides of an image in pixels.
"""

from __future__ import annotations

import numpy as np

from diffusion.data.nuclei.segmentation import DECADES, NucleiSettings, remove_small, segment_density
from diffusion.formats import NETWORK_MPP

# optical density of DAB, to base 10, above which a pixel or the mean of a nucleus is positive: what QuPath's detection of
# positive cells begins with (Bankhead et al. 2017), and weak staining, 1+, with it
POSITIVE_DENSITY = 0.2
# optical density of both stains at which the sum is cut: brown is so dark that a threshold would else lie between brown and blue
# nuclei. Of simulated images with blue nuclei of densities from 0.25 to 1.2 and brown ones from 0.3 to 1.8, all are found with
# 0.3 or 0.4, some are not with 0.5
NUCLEUS_DENSITY = 0.4


def ihc_densities(pixels: np.ndarray) -> np.ndarray:
    """Return the optical densities of haematoxylin and DAB, to base 10, (H, W, 2), float32, of RGB pixels uint8 (H, W, 3).

    By the three stain vectors of Ruifrok and Johnston 2001, the same for all images. The third is eosin: a sample that has kept
    some of it would else look as if it had more haematoxylin.
    """
    from skimage.color import rgb2hed

    return DECADES * rgb2hed(pixels)[..., ::2].astype(np.float32)


def positive_area(pixels: np.ndarray, mpp: float = NETWORK_MPP) -> np.ndarray:
    """Return which pixels (H, W) of an image, uint8 (H, W, 3), are positive for DAB, at `mpp` microns a pixel.

    Connected parts that are smaller than a nucleus are left out: in dark blue nuclei the noise of a camera makes some.
    """
    return remove_small(ihc_densities(pixels)[..., 1] > POSITIVE_DENSITY, NucleiSettings().area / mpp**2)


def segment_ihc_nuclei(pixels: np.ndarray, mpp: float = NETWORK_MPP) -> np.ndarray:
    """Return the nuclei of RGB pixels uint8 (H, W, 3) as numbers from 1 on, int32 (H, W), whether they are blue or brown.

    They are found as those of `segment_nuclei`, in the sum of haematoxylin and DAB, which hides haematoxylin. The sum is cut at
    NUCLEUS_DENSITY. mpp: microns per pixel.
    """
    density = np.minimum(ihc_densities(pixels).sum(-1), NUCLEUS_DENSITY)
    return segment_density(density / DECADES, mpp)
