"""Pairs of patches: the same name in two data sets, such as one tissue in two stains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusion.data.features.store import FeatureStore, open_features, probe_names
from diffusion.data.index.patch_index import PatchIndex


def partner_name(name: str, dataset: str) -> str:
    """Return the name of a patch's partner: the same path in another data set, which is the first folder."""
    return f"{dataset}/{name.partition('/')[2]}"


def open_partner_features(
    root: Path,
    features_dir: str | Path | None,
    index: PatchIndex,
    which: int,
    dataset: str,
    patch_size: int,
    prefixes: Mapping[str, str],
) -> FeatureStore:
    """Open the features of the partners, in another data set, of the patches under key number `which` of an index.

    prefixes: of the files of each part to read; a packed set may hold further parts.

    Raises MissingError as open_features does.
    """
    names = [partner_name(name, dataset) for name in probe_names(index, which)]
    return open_features(root, features_dir, f"{dataset}_{patch_size}", names, patch_size, prefixes)
