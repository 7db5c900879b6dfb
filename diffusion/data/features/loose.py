"""Loose features: one file a patch for each part, beside its image or in a folder of their own.

Beside `<column>_<row>.jpeg` (or, in older sets, under ROOT/features/<same path>) lie `<column>_<row>_<prefix>.npy`, such as
`3_4_sd3_vae.npy` with the latents and `3_4_uni.npy` with the tokens of a patch; `3_4_mask.png`, or `.npy`, with its mask.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.data.crops import CropBox
from diffusion.data.features.parts import PARTS, Record
from diffusion.formats import METADATA_DIR, PATCHES_DIR
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import read_json


@dataclass(frozen=True)
class LooseFeatures:
    """Loose feature files, in `folder`, of patches of `patch_size` pixels; prefixes: of each part's files."""

    folder: Path
    patch_size: int
    prefixes: Mapping[str, str]

    def read(self, name: str, box: CropBox | None = None) -> Record:
        """Read every part of a patch, or of a crop of it. Raises as npy.read_array does."""
        return {part: self.read_part(part, name, box) for part in self.prefixes}

    def read_part(self, part: str, name: str, box: CropBox | None = None) -> np.ndarray:
        """Read one part of a patch, float16, or a crop of it. Raises as npy.read_array does."""
        return PARTS[part].read_file(feature_path(self.folder, name, self.prefixes[part]), self.patch_size, box)

    def present(self, name: str) -> dict[str, bool]:
        """Tell which parts of a patch are there; they are not read."""
        paths = {part: feature_path(self.folder, name, prefix) for part, prefix in self.prefixes.items()}
        return {part: PARTS[part].is_there(path) for part, path in paths.items()}


def feature_path(folder: Path, patch_name: str, prefix: str) -> Path:
    """Return the feature file of a patch; `folder` is ROOT/patches or the features folder."""
    return folder / Path(patch_name).with_name(f"{Path(patch_name).stem}_{prefix}.npy")


def features_folder(root: Path, features_dir: str | Path | None) -> Path:
    """Return where features go: beside the images, or in a folder of their own (relative to ROOT)."""
    return root / PATCHES_DIR if features_dir is None else root / features_dir


def made_by_path(folder: Path, key: str) -> Path:
    """Return the file that records how the features of an index key in `folder` were made."""
    return folder / METADATA_DIR / f"features_{key}.json"


def read_made_by(folder: Path, key: str) -> dict[str, dict[str, Any]]:
    """Read weights and window by prefix, as extraction noted them, or `imported` and its width, as an import did.

    Nothing where nothing was noted. Raises InputError.
    """
    path = made_by_path(folder, key)
    try:
        noted = read_json(path, "record of features", "delete it")
    except MissingError:
        return {}
    if not all(isinstance(made, dict) for made in noted.values()):
        raise InputError(f"{path} is no record of features; delete it")
    return noted


def check_or_write_record(
    folder: Path, key: str, made_by: Mapping[str, Mapping[str, Any]], endings: str, suffix: str = ".npy"
) -> None:
    """Compare how the files of each prefix are made with the record of earlier runs, and add to the record.

    The names of files tell neither window, weights nor kind, and files of two kinds must not be mixed. endings: options that
    choose other prefixes; suffix: of the files. Raises InputError naming the first difference.
    """
    path, recorded = made_by_path(folder, key), read_made_by(folder, key)
    for prefix, made in made_by.items():
        for what, value in made.items():
            previous = recorded.get(prefix, {}).get(what, value)
            if previous != value:
                raise InputError(
                    f"*_{prefix}{suffix} of {key} were made with {what} {previous}, and now {value} is asked for; give other endings "
                    f"({endings}) or another --features, or delete those files and {path}"
                )
    with atomic_write(path) as temporary:
        merged = {prefix: {**recorded.get(prefix, {}), **made} for prefix, made in made_by.items()}
        temporary.write_text(json.dumps({**recorded, **merged}, indent=1))


def imported_width(folder: Path, key: str, prefix: str) -> int | None:
    """Return the width of embeddings that another program computed; None where they were not imported. Raises InputError."""
    made = read_made_by(folder, key).get(prefix, {})
    return int(made["width"]) if made.get("imported") else None
