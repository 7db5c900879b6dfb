"""Features of patches: what the extractor computes for one patch, and which patches still need it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from diffusion.data.crops import LATENT_FACTOR, WINDOW, square, tokens_per_image
from diffusion.data.datasets.pan_cancer import LARGE_PATCH
from diffusion.data.features import (
    feature_path,
    features_folder,
    is_valid,
    moments_shape,
    write_feature,
)
from diffusion.data.index import PatchIndex, index_keys
from diffusion.data.patches import read_patch
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec
from diffusion.errors import InputError, MissingError


def choose_key(index: Path, dataset: str, size: int) -> tuple[str, int]:
    """The index key to extract and the size of its patches: patches of `size` if indexed, else 1024 ones in windows.

    Raises MissingError when the index has neither, InputError when such windows do not tile a patch.
    """
    keys = index_keys(index)
    for patch_size in (size, LARGE_PATCH):
        key = f"{dataset}_{patch_size}"
        if key in keys:
            if patch_size % size or size % WINDOW:
                raise InputError(f"--size {size}: expected a multiple of {WINDOW} that divides {patch_size}")
            return key, patch_size
    raise MissingError(
        f"{index} has no key {dataset}_{size} or {dataset}_{LARGE_PATCH}; it has {', '.join(keys) or 'none'}"
    )


@dataclass(frozen=True)
class FeatureFiles:
    """Where the two feature files of every patch of one index key go, and what they must hold."""

    root: Path
    features_dir: str | None
    patch_size: int
    embedding_width: int
    vae_prefix: str
    ssl_prefix: str

    def paths(self, name: str) -> tuple[Path, Path]:
        folder = features_folder(self.root, self.features_dir)
        return feature_path(folder, name, self.vae_prefix), feature_path(folder, name, self.ssl_prefix)

    def done(self, name: str) -> bool:
        """Whether both files are there and whole."""
        latents, tokens = self.paths(name)
        width = (tokens_per_image(self.patch_size), self.embedding_width)
        return is_valid(latents, moments_shape(self.patch_size)) and is_valid(tokens, width)

    def write(self, name: str, moments: np.ndarray, tokens: np.ndarray) -> None:
        latents_path, tokens_path = self.paths(name)
        write_feature(latents_path, moments)
        write_feature(tokens_path, tokens)

    def pixels(self, name: str) -> torch.Tensor:
        """The patch itself, uint8 (3, S, S)."""
        pixels = read_patch(self.root / "patches" / name, self.patch_size)
        return torch.tensor(pixels).permute(2, 0, 1)  # a copy: decoded pixels are read-only


class Share(NamedTuple):
    """What one of several processes extracts; names are read as they come, since there may be millions."""

    names: Iterator[str]
    count: int


def share(index: PatchIndex, rank: int, world_size: int) -> Share:
    """Every world_size-th name, from the rank-th on."""
    mine = range(rank, len(index), world_size)
    return Share((index.name(i) for i in mine), len(mine))


def encode_patch(pixels: torch.Tensor, codec: LatentCodec, window: int, batch_size: int) -> np.ndarray:
    """Posterior mean and std (32, S/8, S/8), float32, of uint8 pixels (3, S, S), encoded in windows of `window` pixels."""
    per_side = pixels.shape[1] // window
    moments = np.empty(moments_shape(pixels.shape[1]), dtype=np.float32)
    for first in range(0, per_side**2, batch_size):
        numbers = range(first, min(first + batch_size, per_side**2))
        windows = torch.stack([pixels[(slice(None), *square(i, per_side, window))] for i in numbers])
        encoded = codec.moments(windows.float() / 127.5 - 1).cpu().numpy()
        for i, part in zip(numbers, encoded, strict=True):
            moments[(slice(None), *square(i, per_side, window // LATENT_FACTOR))] = part
    return moments


def embed_patch(pixels: torch.Tensor, embedder: PatchEmbedder, batch_size: int) -> np.ndarray:
    """Embeddings (n, D), float32, of the 256-pixel windows of uint8 pixels (3, S, S), row-major."""
    per_side = pixels.shape[1] // WINDOW
    windows = torch.stack([pixels[(slice(None), *square(i, per_side, WINDOW))] for i in range(per_side**2)])
    return torch.cat([embedder.embed(part) for part in windows.split(batch_size)]).cpu().numpy()
