"""What lies packed in a folder, read from end to end: verified, or unpacked into loose files."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffusion.data.features.loose import feature_path
from diffusion.data.features.npy import is_valid, write_feature
from diffusion.data.features.packed_metadata import PackedMetadata, read_metadata
from diffusion.data.features.shards import PackedPatch, list_shards, read_shard, shard_path
from diffusion.data.features.store import FeatureStore
from diffusion.data.features.table import TABLE, build_table, open_table
from diffusion.utils.errors import InputError, MissingError


@dataclass
class Unpacked:
    """Feature files that were written, those that were there, and shards that are damaged."""

    written: int = 0
    there: int = 0
    damaged: int = 0


@dataclass
class PackedFaults:
    """How many patches could be read of a packed folder, and what is wrong with it, a line each."""

    patches: int = 0
    faults: list[str] = field(default_factory=list)


def require_metadata(folder: Path) -> PackedMetadata:
    """Read what lies packed in a folder. Raises InputError where nothing does."""
    metadata = read_metadata(folder)
    if metadata is None:
        raise InputError(f"no packed features in {folder}; check --dataset, --size and the suffixes, or pack first")
    return metadata


def verify_folder(folder: Path, metadata: PackedMetadata, loose: FeatureStore | None) -> PackedFaults:
    """Read every chunk of every shard, testing its checksum; compare the loose files that are there, and the table.

    loose: None where there are no loose features.
    """
    table = open_table(folder)
    found = PackedFaults()
    for number in tqdm(list_shards(folder), unit="shard"):
        path = shard_path(folder, number)
        try:
            differing = 0
            for patch in read_shard(path, metadata.prefixes):
                found.patches += 1
                differing += loose is not None and _differs(patch, loose)
            if differing:
                found.faults.append(
                    f"{path}: {differing} patches differ from their loose files; delete it and pack again"
                )
        except InputError as error:
            found.faults.append(str(error))
    try:
        if not np.array_equal(build_table(folder), table):
            found.faults.append(f"{folder / TABLE} does not tell what the shards hold; run pixcell pack again")
    except InputError as error:
        found.faults.append(str(error))
    found.faults = list(dict.fromkeys(found.faults))
    return found


def _differs(patch: PackedPatch, loose: FeatureStore) -> bool:
    """Tell whether a patch has loose files of other values; one without them has not."""
    try:
        record = loose.read(patch.name)
    except MissingError:
        return False
    except InputError:
        return True
    return not all(np.array_equal(record[part], array) for part, array in patch.parts.items())


def unpack_folder(folder: Path, metadata: PackedMetadata, target: Path) -> Unpacked:
    """Write the loose files of every packed patch below `target`, but for those that are there and whole.

    A damaged shard gives what can be read of it before the damage, and is reported on stderr.
    """
    done = Unpacked()
    for number in list_shards(folder):
        try:
            shard = read_shard(shard_path(folder, number), metadata.prefixes)
            for patch in tqdm(shard, unit="patch", leave=False):
                for part, array in patch.parts.items():
                    path = feature_path(target, patch.name, metadata.prefixes[part])
                    if is_valid(path, array.shape):
                        done.there += 1
                    else:
                        write_feature(path, array)
                        done.written += 1
        except InputError as error:
            done.damaged += 1
            tqdm.write(str(error), file=sys.stderr)
    return done
