"""Images as callers of the pipeline have them: PIL images, arrays and tensors, to steer by and to begin at.

Letters: B images, n samples, K maps, C channels of the latents, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from diffusion.filling import fill_with_tissue, paste_seamlessly
from diffusion.formats import EDIT_STRENGTH
from diffusion.inpainting import KnownLatents, change_of_cells
from diffusion.sampling import Start, check_edit_strength
from diffusion.utils.errors import InputError


def stack_pixels(images: Any, maps: int, name: str) -> torch.Tensor:
    """Return images, one or a list, as `to_pixels` does: (B, 3, H, W), or maps (B, K, H, W). Raises InputError."""
    listed = images if isinstance(images, (list, tuple)) else [images]
    found = [to_pixels(image, maps, name) for image in listed]
    if len({each.shape[1:] for each in found}) != 1:
        raise InputError(f"{name}: images of several sizes, or none; give images of one size")
    return torch.cat(found)


def to_pixels(image: Any, maps: int, name: str) -> torch.Tensor:
    """Return an image (B, 3, H, W), or maps (B, K, H, W), float32 from 0 to 1. Raises InputError for another shape; name: for messages."""
    if not isinstance(image, torch.Tensor):
        array = np.array(image.convert("RGB") if not maps and hasattr(image, "convert") else image)
        if (
            array.dtype.kind in "iub"
            and maps
            and len(np.setdiff1d(array, (0, 1)))
            and len(np.setdiff1d(array, (0, 255)))
        ):
            raise InputError(
                f"{name} of whole numbers: expected a binary mask, of 0 and 255 or 1; give maps from 0 to 1"
            )
        if array.dtype.kind in "iub" and (array.max(initial=0) > 1 or not maps):
            array = array / 255
        if array.ndim == 3 and (not maps or array.shape[0] != maps):
            if maps == 1 and not (array[..., :3] == array[..., :1]).all():
                raise InputError(f"{name} is a picture of colours: expected a mask, of one value a pixel")
            array = array.transpose(2, 0, 1)[: maps or 3]
        image = torch.from_numpy(np.ascontiguousarray(array))
    values = image.float()
    values = values[None, None] if values.ndim == 2 else values[None] if values.ndim == 3 else values
    if not (values.min() >= 0 and values.max() <= 1):
        raise InputError(
            f"{name} from {values.min():g} to {values.max():g}: expected 0 to 1, or 0 to 255 of whole numbers"
        )
    if values.ndim != 4 or values.shape[1] != (maps or 3):
        raise InputError(f"{name} of shape {tuple(values.shape)}: expected (B, {maps or 3}, H, W)")
    return values


@dataclass(frozen=True)
class StartingImages:
    """Images to begin at, uint8 (B, H, W, 3), how much of them is kept, and where they change, bool (B, H, W); None: everywhere."""

    pixels: np.ndarray
    strength: float
    change: np.ndarray | None = None

    @classmethod
    def read(
        cls, images: Any, masks: Any, strength: float | None, conditions: int, size: tuple[int | None, int | None]
    ) -> StartingImages:
        """Return the images that a caller gives, one or one for each condition, with masks of what changes; None: all.

        strength: None for 0.5, and 1 with masks. size: height and width that are expected, None: those of the images. Raises InputError.
        """
        strength = (EDIT_STRENGTH if masks is None else 1.0) if strength is None else strength
        check_edit_strength(strength)
        pixels = (255 * stack_pixels(images, 0, "image")).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        height, width = (own if side is None else side for side, own in zip(size, pixels.shape[1:3], strict=True))
        if (height, width) != pixels.shape[1:3]:
            found = f"{pixels.shape[2]} x {pixels.shape[1]}"
            raise InputError(f"an image of {found} pixels: expected {width} x {height}, as width and height say")
        if len(pixels) not in (1, conditions):
            raise InputError(f"{len(pixels)} images: expected one, or one for each of {conditions} conditions")
        if masks is None:
            return cls(pixels, strength)
        change = (stack_pixels(masks, 1, "mask_image") > 0.5)[:, 0].cpu().numpy()
        if change.shape[1:] != pixels.shape[1:3] or len(change) not in (1, len(pixels)):
            raise InputError(f"mask_image of shape {change.shape}: expected {pixels.shape[:3]}, as the image")
        change = np.broadcast_to(change, pixels.shape[:3])
        if change.all((1, 2)).any() or not change.any((1, 2)).all():
            raise InputError("mask_image: expected a mask that covers a part of the image, and not all of it")
        return cls(pixels, strength, change)

    def repeat_interleave(self, count: int) -> StartingImages:
        """Return every image so many times in a row that there are `count` in all."""
        times = count // len(self.pixels)
        change = None if self.change is None else self.change.repeat(times, 0)
        return replace(self, pixels=self.pixels.repeat(times, 0), change=change)

    @property
    def shown(self) -> np.ndarray:
        """Return the images as they are encoded: at strength 1 without what changes."""
        if self.change is None or self.strength < 1:
            return self.pixels
        return np.stack([fill_with_tissue(*each) for each in zip(self.pixels, self.change, strict=True)])

    def begin_at(self, latents: torch.Tensor) -> tuple[Start | None, KnownLatents | None]:
        """Return what sampling begins at, and what it keeps, of the images' latents (B, C, H/8, W/8)."""
        start = Start(latents, self.strength) if 0 < self.strength < 1 else None
        if self.change is None:
            return start, None
        return start, KnownLatents(latents, change_of_cells(torch.from_numpy(np.ascontiguousarray(self.change))))

    def paste(self, sampled: np.ndarray) -> np.ndarray:
        """Return the images with what was sampled, uint8 (B, H, W, 3), where they change."""
        if self.change is None:
            return sampled
        return np.stack([paste_seamlessly(*each) for each in zip(self.pixels, sampled, self.change, strict=True)])
