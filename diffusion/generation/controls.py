"""Controls of samples: masks or images from files, each beside the tokens of whatever patch conditions.

Letters: K channels of a control, h w sides of the latents, S pixels a side of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.condition import Condition
from diffusion.control import maps_to_control
from diffusion.data.features.masks import mask_maps, read_mask_image
from diffusion.data.images import open_image
from diffusion.encoders.latents import LatentCodec, from_uint8, to_uint8
from diffusion.formats import LATENT_FACTOR, WINDOW
from diffusion.generation.conditions import Conditions, IndexConditions, NamedCondition, read_numbers
from diffusion.generation.priors import PriorConditions
from diffusion.panorama import Windows, sum_weights
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.folders import natural_key
from diffusion.workdir import Run

GREY = 16  # mean difference of the channels of a decoded picture, up to which it is one of a mask
SUFFIXES = (".png", ".npy", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class NamedControl:
    """A control (1, K, h, w), with the name of its file."""

    name: str
    control: torch.Tensor


class ControlledConditions:
    """Conditions, each with a control: image i has the tokens of condition i and control i, both repeated as often as needed."""

    def __init__(self, conditions: Conditions, controls: Sequence[NamedControl]):
        self.conditions, self.controls = conditions, controls

    def __len__(self) -> int:
        """Return how many images make sense: one for each control, or each file that conditions, whatever is more."""
        if isinstance(self.conditions, (IndexConditions, PriorConditions)):
            return len(self.controls)
        return max(len(self.controls), len(self.conditions))

    def __getitem__(self, i: int) -> NamedCondition:
        named, control = self.conditions[i], self.controls[i % len(self.controls)]
        condition = Condition(named.condition.tokens, control.control)
        return replace(named, name=f"{named.name}_{control.name}", condition=condition)

    def has_pixels(self, i: int) -> bool:
        """Tell whether condition `i` carries its tissue: not of a layout that is the control's."""
        return False


def list_controls(paths: Sequence[Path]) -> list[Path]:
    """Return files, and those in folders in natural order: of a folder of patches the masks beside them, as they are named.

    Raises MissingError for what is not there, and an empty folder.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                (each for each in path.iterdir() if each.suffix.lower() in SUFFIXES),
                key=lambda each: natural_key(each.name),
            )
            stems = {each.stem for each in path.iterdir()}
            masks = [
                each for each in inside if each.stem.endswith("_mask") and each.stem.removesuffix("_mask") in stems
            ]
            inside = masks or inside
            if not inside:
                raise MissingError(f"no masks or images in {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise MissingError(f"no file or folder {path} to control by")
    return found


def load_controls(paths: Sequence[Path], run: Run, codec: LatentCodec) -> list[NamedControl]:
    """Read files as a run's ControlNet takes them: masks by its maps, or images as latents; all of the run's own size.

    Raises MissingError, and InputError for a run without ControlNet, and files of another size or kind.
    """
    check_controlled(run)
    size = run.config.image_size
    return [NamedControl(path.stem, read_control(path, run, codec, (size, size))) for path in paths]


def check_controlled(run: Run) -> None:
    """Raise InputError for a run without ControlNet."""
    if run.controlnet is None:
        raise InputError(
            f"--control: {run.folder} has no ControlNet to read it; name one with --controlnet, or a run of the task control"
        )


def read_control(path: Path, run: Run, codec: LatentCodec, size: tuple[int, int]) -> torch.Tensor:
    """Read one file as a control (1, K, h, w) of an image of `size`, rows and columns of pixels. Raises MissingError, InputError."""
    assert run.controlnet is not None
    if not run.controlnet.config.maps:
        return to_control(read_picture(path), run, codec, size, path)
    values = read_numbers(path).numpy() if path.suffix == ".npy" else read_mask_image(path)
    return to_control(values, run, codec, size, path)


def to_control(
    values: np.ndarray, run: Run, codec: LatentCodec, size: tuple[int, int], name: str | Path
) -> torch.Tensor:
    """Return a control (1, K, h, w) of an image of `size`, rows and columns of pixels, as the run's ControlNet takes it.

    values: a mask (H, W) or maps (K, H, W); for a ControlNet of latents a picture, uint8 (H, W, 3). name: for messages.
    Raises InputError for another size or kind.
    """
    assert run.controlnet is not None
    config = run.controlnet.config
    if not config.maps:
        if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8:
            raise InputError(f"{name} is {values.dtype} {values.shape}: expected a picture, uint8 (H, W, 3)")
        _check_size(name, values.shape[:2], size)
        return encode_picture(values, codec, run.device, run.config.image_size)
    if values.ndim not in (2, 3):
        raise InputError(f"{name} has shape {values.shape}: expected a mask (H, W), or maps (K, H, W)")
    mask = values if values.ndim == 3 else values[None]
    _check_size(name, mask.shape[1:], size)
    return maps_to_control(torch.from_numpy(mask_maps(mask, config.mask_kind, len(config.maps), name)))[None]


def encode_picture(pixels: np.ndarray, codec: LatentCodec, device: torch.device, own_size: int) -> torch.Tensor:
    """Return the network latents (1, C, H/8, W/8), on the CPU, of a picture, uint8 (H, W, 3).

    own_size: pixels a side of the network's images, which are encoded in windows that lie side by side, as the features of
    training are. Those of a larger picture overlap by half and are blended, so that no borders of windows lie within those of the
    network.
    """
    picture = from_uint8(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    height, width = (side // LATENT_FACTOR for side in pixels.shape[:2])
    cells = WINDOW // LATENT_FACTOR
    windows = Windows(height, width, cells, cells if max(pixels.shape[:2]) <= own_size else cells // 2)
    fade = windows.blend_weights()
    total = sum_weights(windows.rows, fade, height)[:, None] * sum_weights(windows.columns, fade, width)
    latents = torch.zeros(1, codec.channels, height, width)
    for row, column in windows.corners:
        top, left = LATENT_FACTOR * row, LATENT_FACTOR * column
        part = picture[:, :, top : top + WINDOW, left : left + WINDOW]
        place = (..., slice(row, row + cells), slice(column, column + cells))
        latents[place] += codec.encode(part.to(device)).float().cpu() * (fade[:, None] * fade)
    return latents / total


def always_has_mask(run: Run) -> bool:
    """Tell whether every control of a run's ControlNet has a mask, as `control_mask` returns it: not latents, nor numbers."""
    assert run.controlnet is not None
    return bool(run.controlnet.config.maps) and run.controlnet.config.mask_kind != "channels"


def control_mask(control: torch.Tensor, run: Run, codec: LatentCodec) -> np.ndarray | None:
    """Return the mask that a control (1, K, h, w) of a run's ControlNet was made of, uint8 (S, S): 255 within objects.

    Latents are decoded. None for channels of numbers, and for latents of a picture that is no mask.
    """
    assert run.controlnet is not None
    if run.controlnet.config.mask_kind == "channels":
        return None
    if run.controlnet.config.maps:
        inside = F.pixel_shuffle(control[0].float(), LATENT_FACTOR).amax(0) > 0.5
        return 255 * inside.cpu().numpy().astype(np.uint8)
    with torch.inference_mode():
        picture = to_uint8(codec.decode(control.to(run.device)))[0].numpy().astype(np.int16)
    if np.ptp(picture, axis=0).mean() > GREY:
        return None
    return 255 * (picture.mean(0) > 127.5).astype(np.uint8)


def read_picture(path: Path) -> np.ndarray:
    """Read an image to control by, uint8 (H, W, 3); one of one channel as a binary mask, white on black.

    Raises MissingError, InputError.
    """
    image = open_image(path)
    if len(image.getbands()) > 2:
        return np.array(image.convert("RGB"))
    mask = mask_maps(read_mask_image(path)[None], "binary", 1, path)
    return np.repeat(255 * mask[0].astype(np.uint8)[..., None], 3, axis=2)


def _check_size(path: str | Path, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if tuple(found) != size:
        raise InputError(
            f"{path} has {found[1]} x {found[0]} pixels: expected {size[1]} x {size[0]}, those of the image"
        )
