"""Pixel-wise similarity of pictures and their originals: PSNR and SSIM. Letters: S side in pixels."""

from __future__ import annotations

import numpy as np

ROUNDING = 1 / 12  # mean squared error of rounding to whole numbers: an original is no better known than that
SSIM_SIDE = 11  # pixels of the Gaussian window


def psnr(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio, in dB, of pictures, uint8 (S, S, 3), over all channels.

    It is 58.9 dB at most: errors below that of rounding count as that, since an original in 8 bits is known no better. So
    an identical reconstruction has a finite value, and one blank patch does not decide a mean.
    """
    from skimage.metrics import mean_squared_error  # imports scipy.stats, which takes a second

    error = max(mean_squared_error(original, reconstruction), ROUNDING)
    return float(10 * np.log10(255**2 / error))


def ssim(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """Return the structural similarity of pictures, uint8 (S, S, 3): the mean over channels of that of Wang et al. 2004.

    Gaussian windows of 11 pixels that lie wholly inside, in float64.
    """
    from skimage.metrics import structural_similarity

    similarity = structural_similarity(
        original,
        reconstruction,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    return float(similarity)  # pyright: ignore[reportArgumentType]  it is a tuple only with full=True
