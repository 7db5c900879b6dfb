"""Masks of patches: `<patch>_mask.png`, or `.npy` with several channels, and the maps that a network is controlled by.

Letters: C channels of a mask, K maps, S pixels a side of a patch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.features.npy import check_finite
from diffusion.data.images import open_image
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import abbreviate
from diffusion.utils.values import MaskKind

EXACT = 2048  # whole numbers up to it are exact in float16


def read_mask(path: Path, size: int) -> np.ndarray:
    """Read the mask of a patch of `size` pixels, float16 (C, S, S), as its values are: an array, or the PNG of that name.

    path: ends in .npy. Raises MissingError, and InputError for one that is damaged or of another size.
    """
    if path.is_file():
        return _read_channels(path, size)
    picture = path.with_suffix(".png")
    if not picture.is_file():
        raise MissingError(f"no mask {picture}, nor {path.name}; make it with pixcell masks")
    values = read_mask_image(picture)
    if values.shape != (size, size):
        raise InputError(
            f"{picture} is a mask of {values.shape[1]} x {values.shape[0]} pixels: expected {size} x {size}, as its patch"
        )
    if values.max() > EXACT:  # numbers of a whole slide's objects, of which few are in the patch
        values = np.unique(np.append(values, 0), return_inverse=True)[1][:-1].reshape(size, size)
    if values.max() > EXACT:
        raise InputError(f"{picture} has {values.max()} objects: expected at most {EXACT} in a patch")
    return values.astype(np.float16)[None]


def _read_channels(path: Path, size: int) -> np.ndarray:
    """Read an array (C, S, S), or (S, S), of any numbers as float16. Raises InputError for what is not finite then."""
    try:
        with open(path, "rb") as file:
            values = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is not a whole .npy file ({error}); make the mask again") from None
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[1:] != (size, size) or values.dtype.kind not in "fiub":
        raise InputError(
            f"{path} holds {values.dtype} of shape {values.shape}: expected maps ({size}, {size}), or several as (C, {size}, {size})"
        )
    with np.errstate(over="ignore"):
        return check_finite(path, np.ascontiguousarray(values, dtype=np.float16))


def read_mask_image(path: Path) -> np.ndarray:
    """Read an image of one value a pixel, whole numbers (H, W); of a colour image whose channels are equal, one of them.

    Raises MissingError, and InputError for an image of colours.
    """
    image = open_image(path)
    values = np.asarray(image if image.mode != "1" else image.convert("L"))
    if values.ndim == 3:
        check_grey(values, path)
        values = values[..., 0]
    return values


def check_grey(values: np.ndarray, path: Path) -> None:
    """Raise InputError for an image (H, W, 3 or 4) whose first three channels are not equal."""
    if not (values[..., :3] == values[..., :1]).all():
        raise InputError(f"{path} is a picture of colours: expected a mask, of one value a pixel")


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a binary mask or labels (H, W), of whole numbers up to 65535, as a PNG, atomically."""
    image = Image.fromarray(mask.astype(np.uint8 if mask.dtype == bool or mask.max() < 256 else np.uint16))
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def mask_maps(mask: np.ndarray, kind: MaskKind, count: int, where: str | Path) -> np.ndarray:
    """Return the maps (K, S, S) that a mask (C, S, S) of a kind consists of, float32; count: K.

    binary and labels: 1 within an object; types: one map of 0 and 1 for every class; channels: as they are.
    where: the mask's name in messages. Raises InputError for values that are not of that kind.
    """
    values = mask.astype(np.float32)
    if kind == "channels":
        if len(values) != count:
            raise InputError(f"{where}: a mask of {len(values)} channels: expected {count}, one for each map")
        return values
    if len(values) != 1:
        raise InputError(f"{where}: a mask of {len(values)} channels: expected one; data.mask_kind=channels takes more")
    present = np.unique(values)
    if kind == "labels":
        return (values > 0).astype(np.float32)
    if kind == "types":
        if present[-1] > count or (present % 1).any() or present[0] < 0:
            found = abbreviate([f"{value:g}" for value in present])
            raise InputError(f"{where}: values {found}: expected classes 0 to {count}, as data.maps names them")
        return (values == np.arange(1, count + 1)[:, None, None]).astype(np.float32)
    if len(present) > 2 or (not {*present} <= {0, 1} and not {*present} <= {0, 255}):
        found = abbreviate([f"{value:g}" for value in present])
        raise InputError(
            f"{where}: values {found}: expected 0 and 255 (or 1) of a binary mask; numbers of objects are data.mask_kind=labels, "
            "and of classes types"
        )
    return (values > 0).astype(np.float32)
