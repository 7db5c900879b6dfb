"""Patches of many slides by their precomputed features: whole (PanCancerData) or as crops (PanCancerDataLowRes)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from diffusion.control import maps_to_control
from diffusion.data.batch import BadItem, PatchItem
from diffusion.data.crops import CropBox, crop_box, crops_per_side
from diffusion.data.features.masks import mask_maps
from diffusion.data.features.packed import PackedFeatures
from diffusion.data.features.partner import open_partner_features, partner_name
from diffusion.data.features.parts import CONTROL_LATENTS, LATENTS, MASK, TOKENS, Record, part_prefixes
from diffusion.data.features.store import FeatureStore, open_features, probe_names
from diffusion.data.index.patch_index import PatchIndex, index_keys, index_path
from diffusion.data.sampler import Draw
from diffusion.data.slides.patches import read_patch
from diffusion.formats import DEFAULT_INDEX, PATCHES_DIR, SSL_PREFIX, VAE_PREFIX, WINDOW
from diffusion.utils.errors import InputError
from diffusion.utils.values import MaskKind

LARGE_PATCH = 1024  # pixels of the patches that low-resolution stages crop
IDENTITY_NAMES = 256  # that stand for all names of an index: reading 30 million takes minutes


class CropLocation(NamedTuple):
    """Which part of which patch a sample is, where its features are, and the seed of its draw."""

    features: FeatureStore
    name: str
    number: int  # row-major
    box: CropBox
    seed: int | None
    partners: FeatureStore | None = None  # of the data set that controls


class PanCancerData(Dataset):
    """Whole patches of `resolution` pixels: items of latent (16, S/8, S/8) and tokens ((S/256)^2, D).

    root: the folder of patches/ (and features/, packed/); train_subset_keys: index keys to take (default: all of that
    size); features_dir: None to look beside the images, in ROOT/features, and for packed ones in ROOT/packed;
    return_img: items carry their pixels too. mask_prefix, mask_kind, maps: items carry the maps of their masks as control,
    of which each is named; control_prefix: or the latents of a control image; control_dataset: or the latents of the patches of the
    same names in that data set.
    Raises MissingError or InputError at once for an index, key or features folder that is not there.
    """

    def __init__(
        self,
        root: str | Path,
        resolution: int,
        patch_names_file: str = DEFAULT_INDEX,
        features_dir: str | None = None,
        vae_prefix: str = VAE_PREFIX,
        ssl_prefix: str = SSL_PREFIX,
        train_subset_keys: Sequence[str] | None = None,
        return_img: bool = False,
        patch_size: int | None = None,
        mask_prefix: str | None = None,
        mask_kind: MaskKind = "binary",
        maps: Sequence[str] = ("nuclei",),
        control_prefix: str | None = None,
        control_dataset: str | None = None,
    ):
        self.root, self.resolution = Path(root), resolution
        self.patch_size = patch_size or resolution
        self.crops_per_side = crops_per_side(self.patch_size, resolution)
        self.vae_prefix, self.ssl_prefix, self.return_img = vae_prefix, ssl_prefix, return_img
        self.mask_kind: MaskKind = mask_kind
        self.maps = tuple(maps)
        self.index = open_patch_index(
            index_path(self.root, patch_names_file), train_subset_keys, self.patch_size, resolution
        )
        prefixes = part_prefixes(vae_prefix, ssl_prefix, mask_prefix, control_prefix)
        self.control = {part: prefixes[part] for part in (MASK.name, CONTROL_LATENTS.name) if part in prefixes}
        self.features = [
            open_features(self.root, features_dir, key, probe_names(self.index, i), self.patch_size, prefixes)
            for i, key in enumerate(self.index.keys)
        ]
        self.control_dataset = control_dataset
        latents = {LATENTS.name: vae_prefix}
        self.partners = [
            open_partner_features(self.root, features_dir, self.index, i, control_dataset, self.patch_size, latents)
            for i in range(len(self.index.keys))
            if control_dataset is not None
        ]

    @property
    def maps_control(self) -> bool:
        """Tell whether items are controlled by the maps of masks, not by latents."""
        return MASK.name in self.control

    def __len__(self) -> int:
        return len(self.index) * self.crops_per_side**2

    def sample_name(self, index: int) -> str:
        """Return the name of the patch that sample `index` is of."""
        return self.index.name(index // self.crops_per_side**2)

    def describe(self, index: int) -> str:
        """Return what to call sample `index` in messages: its patch, by its number where its name cannot be read."""
        try:
            return self.sample_name(index)
        except InputError:
            return f"patch {index // self.crops_per_side**2} of {self.index.path}"

    def identity(self) -> dict[str, Any]:
        """Return plain values that differ for other samples or another order, and not for another place on disk."""
        return {
            **describe_identity(self),
            "features": f"{self.vae_prefix}, {self.ssl_prefix}",
            **({"control": self.control} if self.control else {}),
            **({"control_dataset": self.control_dataset} if self.control_dataset is not None else {}),
            **({"maps": [self.mask_kind, *self.maps]} if MASK.name in self.control else {}),
        }

    def __getitem__(self, key: int | Draw) -> PatchItem:
        """Return sample `key`; a Draw has the seed of its posterior draw, a plain number takes torch's own generator."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | Draw]) -> list[PatchItem]:
        """Return several samples, as loaders ask for them.

        Each step is done for all before the next: a quarter faster than sample by sample, whose steps push each other out
        of the processor's cache.
        """
        crops = [self._locate(key) for key in keys]
        # all parts of a crop together: of thousands of shards, few are open
        records = [self._read(crop) for crop in crops]
        latents = draw_latents([record[LATENTS.name] for record in records], [crop.seed for crop in crops])
        tokens = [torch.from_numpy(record[TOKENS.name]).float() for record in records]
        images = [self.image(crop.name, crop.number) if self.return_img else None for crop in crops]
        return [
            PatchItem(latent, embeddings, crop.name, crop.number, image, crop.seed, self._control(record, crop.name))
            for crop, latent, embeddings, image, record in zip(crops, latents, tokens, images, records, strict=True)
        ]

    def _read(self, crop: CropLocation) -> Record:
        """Read every part of a crop, and the latents of its partner."""
        record = crop.features.read(crop.name, crop.box)
        if crop.partners is None or self.control_dataset is None:
            return record
        partner = partner_name(crop.name, self.control_dataset)
        return {**record, CONTROL_LATENTS.name: crop.partners.read_part(LATENTS.name, partner, crop.box)}

    def _control(self, record: Record, name: str) -> torch.Tensor | None:
        """Return the control that a crop has: its mask's maps, or the mean of the latents of its control image."""
        if MASK.name in record:
            maps = mask_maps(record[MASK.name], self.mask_kind, len(self.maps), f"the mask of {name}")
            return maps_to_control(torch.from_numpy(maps))
        if CONTROL_LATENTS.name in record:
            return torch.from_numpy(record[CONTROL_LATENTS.name]).float().chunk(2)[0]
        return None

    def _locate(self, key: int | Draw) -> CropLocation:
        index, seed = key[:2] if isinstance(key, tuple) else (key, None)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        patch, number = divmod(index, self.crops_per_side**2)
        which, name = self.index.locate(patch)
        box = crop_box(number, self.crops_per_side, self.resolution)
        partners = self.partners[which] if self.partners else None
        return CropLocation(self.features[which], name, number, box, seed, partners)

    def image(self, name: str, crop: int) -> torch.Tensor:
        """Read the pixels of a sample, uint8 (3, S, S). Raises MissingError, or InputError as read_patch does."""
        pixels = read_patch(self.root / PATCHES_DIR / name, self.patch_size)
        rows, columns = crop_box(crop, self.crops_per_side, self.resolution).slices(WINDOW)
        return torch.from_numpy(pixels[rows, columns].transpose(2, 0, 1).copy())


def open_patch_index(path: Path, keys: Sequence[str] | None, patch_size: int, resolution: int) -> PatchIndex:
    """Open an index. Raises InputError saying which data set takes patches of the size that it has, if one does."""
    if keys is None:
        present = {key.rpartition("_")[2] for key in index_keys(path)}
        other = resolution if patch_size == LARGE_PATCH else LARGE_PATCH
        if str(patch_size) not in present and str(other) in present:
            kind, how = (
                ("PanCancerDataLowRes", "crops of") if other == LARGE_PATCH else ("PanCancerData", "as they are")
            )
            raise InputError(
                f"{path} has no patches of {patch_size} pixels, but of {other}: set data.type={kind}, which takes them {how}"
                + (f" {resolution}" if other == LARGE_PATCH else "")
            )
    return PatchIndex(path, keys, patch_size)


def draw_latents(moments: Sequence[np.ndarray], seeds: Sequence[int | None]) -> torch.Tensor:
    """Return draws from posteriors, float32 (B, 16, h, w), of float16 moments (32, h, w); seed None takes torch's generator."""
    mean, std = torch.from_numpy(np.stack(moments)).float().chunk(2, dim=1)
    noise = torch.empty(mean.shape)
    for part, seed in zip(noise, seeds, strict=True):
        torch.randn(part.shape, generator=None if seed is None else torch.Generator().manual_seed(seed), out=part)
    return noise.mul_(std).add_(mean)


class PanCancerDataLowRes(PanCancerData):
    """Crops of `resolution` pixels (256 or 512) from 1024-pixel patches and their features."""

    def __init__(self, root: str | Path, resolution: int, **kwargs):
        super().__init__(root, resolution, patch_size=LARGE_PATCH, **kwargs)


class IndexedData(Protocol):
    """A data set of the patches of an index, or of crops of them."""

    index: PatchIndex
    patch_size: int
    resolution: int

    def __len__(self) -> int: ...
    def __getitem__(self, key: int | Draw, /) -> Any: ...

    def sample_name(self, index: int) -> str:
        """Return the name of the patch that sample `index` is of."""
        ...

    def describe(self, index: int) -> str:
        """Return what to call sample `index` in messages."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return plain values that tell these samples and their order from any others."""
        ...


def describe_identity(dataset: IndexedData) -> dict[str, Any]:
    """Return what tells the patches and crops of a data set, and their order, from any others."""
    count = len(dataset)
    names = "\n".join(dataset.sample_name(i * count // IDENTITY_NAMES) for i in range(IDENTITY_NAMES))
    return {
        "patches": dict(zip(dataset.index.keys, dataset.index.lengths, strict=True)),
        "names": hashlib.sha256(names.encode()).hexdigest()[:16],
        "patch_size": dataset.patch_size,
        "resolution": dataset.resolution,
    }


class SkipBad(Dataset):
    """A data set whose unreadable items are BadItems instead of errors; nothing else comes in their place."""

    def __init__(self, dataset: IndexedData):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def identity(self) -> dict[str, Any]:
        """Return the identity of the data set below."""
        return self.dataset.identity()

    def __getitem__(self, key: int | Draw) -> Any:
        try:
            return self.dataset[key]
        except InputError as error:
            return BadItem(self.dataset.describe(key[0] if isinstance(key, tuple) else key), str(error))


DATASETS = {"PanCancerData": PanCancerData, "PanCancerDataLowRes": PanCancerDataLowRes}


def build_dataset(type: str, on_error: str = "raise", **kwargs) -> PanCancerData | SkipBad:
    """Build a data set by its class name, as config files name it. Raises InputError for an unknown one.

    on_error: "skip" for BadItems where items cannot be read; else packed features that cannot be complete are refused.
    """
    if type not in DATASETS:
        raise InputError(f"no data set type {type!r}; known are {', '.join(DATASETS)}")
    dataset = DATASETS[type](**kwargs)
    if on_error == "skip":
        return SkipBad(dataset)
    for key, length, features in zip(dataset.index.keys, dataset.index.lengths, dataset.features, strict=True):
        if (
            isinstance(features, PackedFeatures) and len(features) < length
        ):  # better now than at the first that is missing
            raise InputError(
                f"{key} has {length} patches, and {features.folder} only {len(features)}; run pixcell pack again"
            )
    return dataset
