"""Where a data set's features are: in loose files or packed, beside the images or in a folder of their own."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from diffusion.data.crops import CropBox
from diffusion.data.features.loose import LooseFeatures, feature_path, features_folder
from diffusion.data.features.packed import PackedFeatures
from diffusion.data.features.packed_metadata import packed_folder, read_metadata
from diffusion.data.features.parts import CONTROL_LATENTS, LATENTS, MASK, TOKENS, Record
from diffusion.data.index.patch_index import PatchIndex
from diffusion.formats import FEATURES_DIR, PACKED_DIR
from diffusion.utils.errors import MissingError

PROBE_COUNT = 16  # patches looked at to find a key's features: the first may be the one that failed

SUFFIX_OPTIONS = {  # part -> the option that names the ending of its files, and the key of a config
    LATENTS.name: ("--latent-suffix", "data.vae_prefix"),
    TOKENS.name: ("--embedding-suffix", "data.ssl_prefix"),
    MASK.name: ("--mask-suffix", "data.mask_prefix"),
    CONTROL_LATENTS.name: ("--control-suffix", "data.control_prefix"),
}


class FeatureStore(Protocol):
    """What reads the features of patches by name: loose files (LooseFeatures) or shards (PackedFeatures)."""

    @property
    def folder(self) -> Path:
        """Return where the features are."""
        ...

    @property
    def prefixes(self) -> Mapping[str, str]:
        """Return the parts that it reads, with the prefix of their files."""
        ...

    def read(self, name: str, box: CropBox | None = None) -> Record:
        """Read every part of a patch, or of a crop of it."""
        ...

    def read_part(self, part: str, name: str, box: CropBox | None = None) -> np.ndarray:
        """Read one part of a patch, float16, or a crop of it."""
        ...

    def present(self, name: str) -> dict[str, bool]:
        """Tell which parts of a patch are there; they are not read."""
        ...


def open_features(
    root: Path,
    features_dir: str | Path | None,
    key: str,
    names: Iterable[str],
    patch_size: int,
    prefixes: Mapping[str, str],
    packed: bool = True,
) -> FeatureStore:
    """Open the features of an index key: in the folder named, else beside the images, in ROOT/features, or in ROOT/packed.

    names: of some patches of the key, by which that is decided; prefixes: of the files of each part to read;
    packed: False to look for loose files only.
    Raises MissingError naming every place looked at.
    """
    names = list(names)
    if not names:  # an empty key, of which nothing will be read
        return LooseFeatures(features_folder(root, features_dir), patch_size, prefixes)
    candidates = [None, FEATURES_DIR, PACKED_DIR] if features_dir is None else [features_dir]
    looked, first_prefix = [], next(iter(prefixes.values()))
    for candidate in candidates:
        folder = features_folder(root, candidate)
        together = packed_folder(folder, key, prefixes)
        if packed and (found := find_packed(together, prefixes)) is not None:
            return PackedFeatures(found, patch_size)
        paths = [feature_path(folder, name, first_prefix) for name in names]
        if any(path.is_file() for path in paths):
            return LooseFeatures(folder, patch_size, prefixes)
        looked += [paths[0], together] if packed else [paths[0]]
    other = sorted({ending for place in candidates for ending in find_endings(features_folder(root, place), names)})
    named = [SUFFIX_OPTIONS[part] for part in prefixes if part in SUFFIX_OPTIONS]
    others = (
        f"there are some with the endings {', '.join(other)}: name these with {' and '.join(option for option, _ in named)} (in a "
        f"config: {', '.join(key for _, key in named)}), or "
    )
    raise MissingError(
        f"no features at {' or '.join(str(path) for path in looked)}; {others if other else ''}make them with pixcell features, "
        "or name their folder with --features (in a config: data.features_dir)"
    )


def find_packed(folder: Path, prefixes: Mapping[str, str]) -> Path | None:
    """Return a packed folder that has the parts to read: the one named after them, else one beside it with more parts."""
    beside = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
    for place in (folder, *beside):
        metadata = read_metadata(place)
        if metadata is not None and prefixes.items() <= metadata.prefixes.items():
            return place
    return None


def find_endings(folder: Path, names: Iterable[str]) -> set[str]:
    """Return the endings of all loose feature files of some patches: `uni` of `3_4_uni.npy`."""
    found = set()
    for name in names:
        stem = f"{Path(name).stem}_"
        files = (folder / name).parent.glob(f"{glob.escape(stem)}*.npy")
        found |= {file.stem.removeprefix(stem) for file in files}
    return found


def probe_names(index: PatchIndex, which: int) -> list[str]:
    """Return names spread over one key of an index, by which open_features finds its features."""
    start, count = sum(index.lengths[:which]), index.lengths[which]
    return [
        index.name(start + i) for i in sorted({n * count // PROBE_COUNT for n in range(PROBE_COUNT)} if count else ())
    ]
