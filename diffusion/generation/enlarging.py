"""Super-resolution of pictures: what is enlarged, and results whose means over squares are the picture that was given.

Letters: H W pixels of the picture given, k factor of enlargement.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffusion.utils.errors import InputError

FACTORS = (2, 4)
MAX_ERROR = 1 / 255  # root mean square, of pixels from 0 to 1, up to which a result agrees with the picture
ROUNDS = 20  # of back-projection, of which a few are enough but for pictures at the ends of the range of pixels


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return a picture, uint8 (k H, k W, 3), enlarged bicubically from uint8 (H, W, 3). Raises InputError for a factor but 2 and 4."""
    if factor not in FACTORS:
        raise InputError(f"enlarged {factor} times: expected {' or '.join(map(str, FACTORS))}")
    height, width = pixels.shape[:2]
    return np.array(Image.fromarray(pixels).resize((factor * width, factor * height), Image.Resampling.BICUBIC))


def reduce(pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """Return means (1, 3, H, W) over squares of k x k pixels (1, 3, k H, k W)."""
    return F.avg_pool2d(pixels, factor)


def agree_with(coarse: np.ndarray, sampled: np.ndarray, factor: int) -> np.ndarray:
    """Return a sampled picture, uint8 (k H, k W, 3), corrected so that its means over squares are those of a coarse one (H, W, 3).

    By iterative back-projection (Irani and Peleg 1991): what lacks is enlarged and added, until the root mean square of what lacks is
    below half of 1/255. What clipping leaves of it after some rounds is added square by square, in shares of what each pixel has left.
    """
    wanted = torch.from_numpy(coarse).permute(2, 0, 1)[None].float()
    values = torch.from_numpy(sampled).permute(2, 0, 1)[None].float()
    for _ in range(ROUNDS):
        lacks = wanted - reduce(values.round(), factor)
        if lacks.square().mean().sqrt() <= 255 * MAX_ERROR / 2:
            break
        enlarged = F.interpolate(lacks, scale_factor=factor, mode="bicubic", align_corners=False)
        values = (values + enlarged).clamp(0, 255)
    else:
        means = reduce(values, factor)
        shares = torch.cat([(wanted - means) / (255 - means).clamp(min=1e-6), 1 - wanted / means.clamp(min=1e-6)])
        to_white, to_black = F.interpolate(shares.clamp(0, 1), scale_factor=factor, mode="nearest").split(1)
        values = (values + to_white * (255 - values)) * (1 - to_black)
    return values[0].permute(1, 2, 0).round().to(torch.uint8).numpy()
