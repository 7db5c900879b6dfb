"""What a slide shows where: tissue, glass, pen ink, black; and whether a patch is in focus.

These are distinguished by hue, saturation and value on a small picture of the slide, and by sharpness on the patch itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

THUMBNAIL_SIDE = 2048  # longest side, in pixels, of the small picture
# Glass has a saturation of 0.01 to 0.04 and pale stroma 0.08. Otsu's threshold would fall between the two stains of a slide
# that is all tissue, and in the noise of one that is all glass; clipped to this range it does neither.
SATURATION_RANGE = (0.05, 0.08)
TINT = 0.12  # saturation that glass may have under a coloured lamp; balanced out first
# Haematoxylin and eosin lie between 254 and 327 degrees (1st and 99th percentile of two images); blue to green ink does not.
INK_HUES = (70, 240)
# Red ink differs from eosin and blood by its saturation alone; the 99th percentile of three images, of all hues, is 0.66,
# 0.73 and 0.91.
RED_INK_HUES, RED_INK_SATURATION, RED_INK_VALUE = (345, 15), 0.85, 0.5
# Black pen, dust, and what a scanner left out: dark and grey. Dark keratin and pigment are as dark, but reddish.
BLACK_VALUE, BLACK_SATURATION = 0.25, 0.35
# Optical density, of the channel that shows most of it, below which a pixel is glass. In nine pictures of lung and kidney, glass has less
# than 0.02, and the palest counterstain of immunohistochemistry, whose saturation is that of glass, 0.035 and more.
GLASS_DENSITY = 0.03


class Shares(NamedTuple):
    """Parts of a square, 0 to 1; what is none of these is glass."""

    tissue: float
    ink: float
    black: float


@dataclass(frozen=True)
class SlideMap:
    """Bool arrays (h, w) over a slide of `width` x `height` pixels."""

    tissue: np.ndarray
    ink: np.ndarray
    black: np.ndarray
    width: int
    height: int

    @classmethod
    def from_thumbnail(cls, picture: Image.Image, width: int, height: int) -> SlideMap:
        """Classify the pixels of `picture`, a small picture of a slide in RGB."""
        from skimage.filters import threshold_otsu

        hue, saturation, value = (
            np.asarray(channel, dtype=np.float32) / 255 for channel in balance_white(picture).convert("HSV").split()
        )
        threshold = float(np.clip(threshold_otsu(saturation), *SATURATION_RANGE))
        stained = saturation > threshold
        degrees = hue * 360
        black = (value < BLACK_VALUE) & ((saturation < BLACK_SATURATION) | (value < BLACK_VALUE / 4))
        cold = stained & (degrees > INK_HUES[0]) & (degrees < INK_HUES[1])
        red = (degrees > RED_INK_HUES[0]) | (degrees < RED_INK_HUES[1])
        red &= (saturation > RED_INK_SATURATION) & (value > RED_INK_VALUE)
        ink = (cold | red) & ~black
        return cls(stained & ~ink & ~black, ink, black, width, height)

    def measure_square(self, x: int, y: int, size: int) -> Shares:
        """Return the shares of the square with top-left pixel x, y."""
        across, down = self.tissue.shape[1] / self.width, self.tissue.shape[0] / self.height
        rows = slice(math.floor(y * down), math.ceil((y + size) * down))
        columns = slice(math.floor(x * across), math.ceil((x + size) * across))
        return Shares(*(float(mask[rows, columns].mean()) for mask in (self.tissue, self.ink, self.black)))


def glass_mask(picture: Image.Image) -> np.ndarray:
    """Tell which pixels of an RGB picture of a slide, of whatever stain, are glass: bool (h, w), those nearly as bright as the lamp.

    Saturation, by which tissue of H&E is found, is as low in the pale counterstain of immunohistochemistry as in glass.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    lamp = np.maximum(np.percentile(pixels.reshape(-1, 3), 99, axis=0), 1)
    return np.asarray((pixels >= lamp * 10**-GLASS_DENSITY).all(axis=-1))


def balance_white(picture: Image.Image) -> Image.Image:
    """Return the picture with its glass made neutral: the lamp's colour is that of the brightest pixels, unless they are stained."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    value = pixels.max(axis=-1)
    saturation = 1 - pixels.min(axis=-1) / np.maximum(value, 1)
    bright = (value >= np.percentile(value, 99) - 8) & (saturation < TINT)
    if not bright.any():
        return picture
    lamp = np.median(pixels[bright], axis=0)
    return Image.fromarray(np.clip(pixels * (lamp.max() / lamp), 0, 255).round().astype(np.uint8))


def blur_score(patch: Image.Image) -> float:
    """Return how blurred a patch is, 0 to 1: Crete-Roffet's measure (Proc. SPIE 6492, 2007), which compares it with its own blur."""
    from skimage.measure import blur_effect

    return float(np.asarray(blur_effect(np.asarray(patch.convert("L")))))
