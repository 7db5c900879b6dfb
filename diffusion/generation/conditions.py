"""Conditions of samples: tokens of indexed patches, of image files, of neighbouring patches, or from .npy files.

Letters: L tokens of an image, D their width, S its side in pixels, R x K tokens of a large picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.condition import Condition
from diffusion.data.datasets.pan_cancer import LARGE_PATCH, PanCancerData, PanCancerDataLowRes
from diffusion.data.features.parts import TOKENS
from diffusion.data.index.patch_index import find_keys, index_keys, index_path, split_key
from diffusion.data.sampler import Draw, Permutation
from diffusion.data.slides.patches import neighbour_name
from diffusion.data.slides.reader import PlainImage, Slide
from diffusion.data.slides.records import grid_stride
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentScale
from diffusion.formats import NETWORK_MPP, PATCHES_DIR, WINDOW
from diffusion.generation.regions import Region, embed_region
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.seeds import mix_seed

SMALLEST_ANGLE = 1e-4  # radians between tokens, below which they count as parallel


@dataclass(frozen=True)
class NamedCondition:
    """What one image is sampled for, with a name for its file.

    condition: of one image, tokens (1, L, D); of a large image a grid of tokens (1, R, K, D).
    pixels: the tissue that the condition describes, uint8 (3, S, S), where it is known.
    """

    name: str
    condition: Condition
    pixels: torch.Tensor | None = None


class Conditions(Protocol):
    """Conditions by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> NamedCondition: ...


class IndexConditions:
    """Patches of an index in random order: every patch once, then all of them in another order, and so on.

    pixels: whether conditions carry their tissue, where its image is there. scale: of latents that control, where the data
    set has some.
    """

    def __init__(self, dataset: PanCancerData, seed: int, pixels: bool = False, scale: LatentScale | None = None):
        self.dataset, self.seed, self.pixels, self.scale = dataset, seed, pixels, scale

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> NamedCondition:
        item = self.dataset[Draw(self._sample(i), mix_seed(self.seed, i))]
        stem = Path(item.name)
        image = self.dataset.image(item.name, item.crop) if self.has_pixels(i) else None
        control = None if item.control is None else item.control[None]
        if control is not None and self.scale is not None and not self.dataset.maps_control:
            control = self.scale.to_network(control)
        return NamedCondition(
            f"{stem.parent.name}_{stem.stem}_{item.crop}", Condition(item.tokens[None], control), image
        )

    def has_pixels(self, i: int) -> bool:
        """Tell whether condition `i` carries its tissue; features without images condition as well."""
        return self.pixels and (self.dataset.root / PATCHES_DIR / self.dataset.sample_name(self._sample(i))).is_file()

    def _sample(self, i: int) -> int:
        round_, place = divmod(i, len(self))
        return Permutation(len(self), mix_seed(self.seed, round_))(place)


class RepeatedConditions:
    """A list of conditions, repeated from its start as often as needed."""

    def __init__(self, conditions: Sequence[NamedCondition]):
        self.conditions = conditions

    def __len__(self) -> int:
        return len(self.conditions)

    def __getitem__(self, i: int) -> NamedCondition:
        return self.conditions[i % len(self.conditions)]

    def has_pixels(self, i: int) -> bool:
        """Tell whether condition `i` carries its tissue."""
        return self[i].pixels is not None


def open_condition_dataset(arguments: dict[str, Any], names: Sequence[str] | None) -> PanCancerData:
    """Open the patches that conditions come from.

    arguments: of the data set in a run's config. names: index keys instead of the config's, all of patches of the image's
    own size or all of 1024 pixels, which are cropped; or data sets, of which those are taken that the index has. Without
    names, patches are taken as in training if the index has
    such, and else in the other way. Raises InputError for keys of both kinds or of another size.
    """
    arguments = dict(arguments)
    low_resolution, size = arguments.pop("type") == "PanCancerDataLowRes", arguments["resolution"]
    path = index_path(arguments["root"], arguments["patch_names_file"])
    keys = None if names is None else find_keys(index_keys(path), names, (size, LARGE_PATCH))
    if keys is None and arguments["train_subset_keys"] is None:
        present = {split_key(key)[1] for key in index_keys(path)}
        as_trained, otherwise = (LARGE_PATCH, size) if low_resolution else (size, LARGE_PATCH)
        if as_trained not in present and otherwise in present:
            low_resolution = not low_resolution
    if keys is not None:
        sizes = {split_key(key)[1] for key in keys}
        if sizes not in ({size}, {LARGE_PATCH}):
            raise InputError(f"--dataset {' '.join(keys)}: expected keys of {size} or all of {LARGE_PATCH} pixels")
        low_resolution = sizes != {size}
        arguments["train_subset_keys"] = keys
    return (PanCancerDataLowRes if low_resolution else PanCancerData)(**arguments)


def load_image_conditions(
    paths: Sequence[Path], embedder: PatchEmbedder, size: int, image_mpp: float | None = None
) -> list[NamedCondition]:
    """Embed image files, of larger ones the square of `size` pixels in their middle.

    image_mpp: their microns per pixel, from which they are shrunk to the network's; None: pixel for pixel.
    Raises MissingError, or InputError for files that are not RGB images, too small, or coarser than the network's pixels.
    """
    opened = ((path, PlainImage(path, NETWORK_MPP, image_mpp)) for path in paths)
    return [embed_square(middle_square(image, size, str(path)), embedder, size, path.stem) for path, image in opened]


def middle_square(image: Slide, size: int, name: str) -> Region:
    """Return the square of `size` pixels in the middle of an image; name: for errors. Raises InputError for a smaller one."""
    if min(image.width, image.height) < size:
        raise InputError(f"{name} has {image.width} x {image.height} pixels: expected {size} x {size} or more")
    return Region(image, (image.width - size) // 2, (image.height - size) // 2)


def embed_square(region: Region, embedder: PatchEmbedder, size: int, name: str) -> NamedCondition:
    """Embed the square of `size` pixels from the corner of a region on, and return it as a condition of this name."""
    tokens = embed_region(region, size // WINDOW, size // WINDOW, embedder)
    pixels = torch.from_numpy(np.array(region.slide.read(region.x, region.y, size))).permute(2, 0, 1)
    return NamedCondition(name, Condition(tokens.flatten(0, 1)[None]), pixels)


def load_token_conditions(paths: Sequence[Path], tokens: int) -> list[NamedCondition]:
    """Load embeddings from .npy files, (L, D) for one image or (n, L, D) for several. Raises MissingError, InputError."""
    conditions = []
    for path in paths:
        values = read_numbers(path, "tokens")
        images = values[None] if values.ndim == 2 else values
        if images.ndim != 3 or images.shape[1] != tokens:
            raise InputError(
                f"{path} holds {tuple(values.shape)}: expected ({tokens}, D), or several as (n, {tokens}, D)"
            )
        names = [path.stem] if len(images) == 1 else [f"{path.stem}_{i}" for i in range(len(images))]
        conditions += [NamedCondition(name, Condition(image[None])) for name, image in zip(names, images, strict=True)]
    return conditions


def read_numbers(path: Path, what: str = "numbers") -> torch.Tensor:
    """Read an .npy file as float32. Raises MissingError, or InputError for one that is damaged or has NaN or infinity."""
    if not path.is_file():
        raise MissingError(f"no file of {what} at {path}")
    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("it does not begin as one; images go with --images or --reference")
        array = np.load(path, allow_pickle=False)
        if array.dtype.kind not in "fiu" or array.size == 0:
            raise ValueError(f"{array.dtype} of shape {array.shape}")
    except (ValueError, TypeError, EOFError, OSError, AttributeError) as error:
        raise InputError(f"{path} is not a whole .npy file of real numbers ({str(error).split('.')[0]})") from None
    values = torch.from_numpy(array).float()
    if not values.isfinite().all():
        raise InputError(f"{path} holds numbers that are not finite")
    return values


def neighbourhood(dataset: PanCancerData, i: int, seed: int, rows: int, columns: int) -> NamedCondition:
    """Return a grid of tokens (1, rows, columns, D) of a random patch and the patches to its right and below it.

    The index lists only tissue: where a patch has no neighbour, it is mirrored into the neighbour's place.
    """
    patches = len(dataset.index)
    which, name = dataset.index.locate(Permutation(patches, mix_seed(seed, i // patches))(i % patches))
    features, side = dataset.features[which], dataset.patch_size // WINDOW
    stride = grid_stride(dataset.root / PATCHES_DIR, name, dataset.patch_size)

    def tokens_of(patch: str) -> torch.Tensor:
        return torch.from_numpy(features.read_part(TOKENS.name, patch)).float().unflatten(0, (side, side))

    first = tokens_of(name)
    bands = []
    for down in range(-(-rows // side)):
        band = []
        for right in range(-(-columns // side)):
            adjacent = neighbour_name(name, stride * right, stride * down) if stride and (right or down) else None
            if adjacent is not None and all(features.present(adjacent).values()):
                band.append(tokens_of(adjacent))
            else:
                band.append(first.flip([axis for axis, places in ((0, down), (1, right)) if places % 2]))
        bands.append(torch.cat(band, dim=1))
    path = Path(name)
    return NamedCondition(f"{path.parent.name}_{path.stem}", Condition(torch.cat(bands)[None, :rows, :columns]))


def slerp(first: torch.Tensor, second: torch.Tensor, part: float) -> torch.Tensor:
    """Interpolate tokens (..., L, D) spherically: directions along the arc (Shoemake 1985), lengths linearly.

    Embeddings lie in a shell about the origin; on the straight line between two of them the length would be too small.
    """
    lengths = torch.lerp(first.norm(dim=-1, keepdim=True), second.norm(dim=-1, keepdim=True), part)
    a, b = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    angle = torch.arccos((a * b).sum(-1, keepdim=True).clamp(-1, 1))
    if (angle > SMALLEST_ANGLE).logical_and(angle < torch.pi - SMALLEST_ANGLE).all():
        direction = (torch.sin((1 - part) * angle) * a + torch.sin(part * angle) * b) / torch.sin(angle)
    else:  # some are parallel, so that there is no arc or no unique one
        direction = F.normalize(torch.lerp(a, b, part), dim=-1)
    return lengths * direction
