"""Where a data set's features are: in loose files or packed, beside the images or in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from diffusion.data.features.loose import EVERYTHING, LooseFeatures, feature_path, features_folder
from diffusion.data.features.packed import PackedFeatures, packed_folder, read_about
from diffusion.data.index.patch_index import PatchIndex
from diffusion.formats import FEATURES_DIR, PACKED_DIR
from diffusion.utils.errors import MissingError

PROBES = 16  # patches looked at to find a key's features: the first may be the one that failed


class FeatureStore(Protocol):
    """Reads the features of patches by name; LooseFeatures and PackedFeatures are such."""

    def moments(self, name: str, rows: slice = EVERYTHING, columns: slice = EVERYTHING) -> np.ndarray:
        """Posterior mean and std, float16 (32, h, w), of a part of a patch."""

    def tokens(self, name: str, which: Sequence[int] | None = None) -> np.ndarray:
        """Embeddings, float16 (L, D), of some windows of a patch, or all."""

    def present(self, name: str) -> tuple[bool, bool]:
        """Whether a patch's latents and embeddings are there; they are not read."""


def open_features(
    root: Path,
    features_dir: str | Path | None,
    key: str,
    names: Iterable[str],
    patch_size: int,
    vae_prefix: str,
    ssl_prefix: str,
    packed: bool = True,
) -> FeatureStore:
    """The features of an index key: in the folder named, else beside the images, else in ROOT/features, else in ROOT/packed.

    Decided once for a key, by some of its `names`. packed: False to look for loose files only.
    Raises MissingError naming every place looked at.
    """
    names = list(names)
    if not names:  # an empty key, of which nothing will be read
        return LooseFeatures(features_folder(root, features_dir), patch_size, vae_prefix, ssl_prefix)
    candidates = [None, FEATURES_DIR, PACKED_DIR] if features_dir is None else [features_dir]
    looked = []
    for candidate in candidates:
        folder = features_folder(root, candidate)
        together = packed_folder(folder, key, vae_prefix, ssl_prefix)
        if packed and read_about(together) is not None:
            return PackedFeatures(together, patch_size)
        paths = [feature_path(folder, name, vae_prefix) for name in names]
        if any(path.is_file() for path in paths):
            return LooseFeatures(folder, patch_size, vae_prefix, ssl_prefix)
        looked += [paths[0], together] if packed else [paths[0]]
    raise MissingError(
        f"no features at {' or '.join(str(path) for path in looked)}; make them with tools/extract_features.py, "
        "or name their folder with features_dir"
    )


def probes(index: PatchIndex, which: int) -> list[str]:
    """Names spread over one key of an index."""
    start, count = sum(index.lengths[:which]), index.lengths[which]
    return [index.name(start + i) for i in sorted({n * count // PROBES for n in range(PROBES)} if count else ())]
