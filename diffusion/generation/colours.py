"""Colours of one picture matched to those of another, by the kept implementations of torchstain.

Letters: H W pixels of a picture.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError

ColourMethod = Literal["reinhard", "macenko"]
LIGHT = 240  # value of light through glass (Macenko et al. 2009)
FAINTEST = 0.15  # optical density in all channels from which a pixel counts
FEWEST_PIXELS = 256  # stained, from which on colours of stains are estimated
ALIKE = 0.5  # standard deviation of grey values up to which a picture has one colour


class ColourMatch:
    """The colours of a reference, uint8 (H, W, 3), which pictures of other sizes are given.

    reinhard: means and deviations in Lab (Reinhard et al. 2001). macenko: the two stains' colours and largest concentrations (Macenko et
    al. 2009). fingerprint: of the reference. Raises InputError for a reference of one colour, or with too little stain.
    """

    def __init__(self, reference: np.ndarray, method: ColourMethod, name: str = "the reference"):
        from torchstain import normalizers

        check_colours(reference, method, name)
        kind = normalizers.MacenkoNormalizer if method == "macenko" else normalizers.ReinhardNormalizer
        self.method: ColourMethod = method
        self._normalizer: Any = kind(backend="numpy")
        self._normalizer.fit(reference)
        self.fingerprint = fingerprint_tensors({"reference": torch.from_numpy(reference)})

    def apply(self, pixels: np.ndarray, name: str = "the picture") -> np.ndarray:
        """Return a picture, uint8 (H, W, 3), with the colours of the reference. Raises InputError as the class does."""
        check_colours(pixels, self.method, name)
        if self.method == "macenko":
            return self._normalizer.normalize(pixels, stains=False)[0]
        return self._normalizer.normalize(pixels)


def check_colours(pixels: np.ndarray, method: ColourMethod, name: str) -> None:
    """Raise InputError for a picture whose colours cannot be matched: grey, of one colour, or with too little stain for macenko."""
    values = pixels.astype(np.float32)
    if values.mean(2).std() <= ALIKE:
        raise InputError(f"{name} has one colour, which nothing can be matched to or from; take a picture of tissue")
    if (values - values.mean(2, keepdims=True)).std((0, 1)).max() <= ALIKE:
        raise InputError(
            f"{name} is grey, and has no colours to be matched to or from; take a picture of stained tissue"
        )
    if method == "reinhard":
        return
    density = -np.log((pixels.astype(np.float64) + 1) / LIGHT)
    count = int((density >= FAINTEST).all(2).sum())
    if count < FEWEST_PIXELS:
        raise InputError(
            f"{name} has {count} pixels that are stained in all colours: the stains' colours are estimated from {FEWEST_PIXELS} on; "
            "take a picture of more tissue, or the method reinhard"
        )
