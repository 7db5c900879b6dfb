"""Pack the features of an index key into HDF5 shards, from which training reads a crop at once; or unpack them again.

Shards go to OUT/<key>/<vae_prefix>-<ssl_prefix>/, each written aside, read back, compared and renamed. A run that was stopped
goes on with the shard that it was at, and names that the index gained since are packed into further shards. Loose files are
left alone. With --unpack, the files that are packed and not whole below ROOT/FEATURES_DIR are written there; with --verify,
every chunk's checksum is tested, and loose files that are there are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

import numpy as np
from tqdm import tqdm

from diffusion.cli.parser import output_folder, path_text, plain_name, positive_float, positive_int, run, tool_parser
from diffusion.data.features import packed_metadata, packing, shards
from diffusion.data.features.loose import (
    feature_path,
    features_folder,
    read_made_by,
)
from diffusion.data.features.npy import is_valid, write_feature
from diffusion.data.features.packed_metadata import PackedMetadata
from diffusion.data.features.parts import TOKENS, part_prefixes
from diffusion.data.features.shards import PackedPatch
from diffusion.data.features.store import FeatureStore, open_features, probe_names
from diffusion.data.features.table import TABLE, build_table, open_table, write_table
from diffusion.data.index.patch_index import PatchIndex, index_path, iterate_names
from diffusion.formats import DEFAULT_INDEX, PACKED_DIR, SSL_PREFIX, VAE_PREFIX
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.locks import file_lock

EXAMPLES = """  python tools/pack_features.py --dataset_name tcga_diagnostic --workers 8
  python tools/pack_features.py --dataset_name demo --vae_prefix tiny_vae --ssl_prefix mobilenetv2
  python tools/pack_features.py --dataset_name demo --verify
  python tools/pack_features.py --dataset_name demo --unpack --features_dir features
"""


def main() -> int:
    args = parse_args()
    key = f"{args.dataset_name}_{args.size}"
    prefixes = part_prefixes(args.vae_prefix, args.ssl_prefix)
    folder = packed_metadata.packed_folder(args.out or args.root / PACKED_DIR, key, prefixes)
    if args.unpack:
        return unpack(folder, args)
    if args.verify:
        return verify(folder, args)
    with file_lock(folder / ".lock"):
        return pack(folder, key, prefixes, args)


def pack(folder: Path, key: str, prefixes: dict[str, str], args: argparse.Namespace) -> int:
    """Pack what is not packed yet; return the exit code: 1 when a patch had to be left out."""
    index_file = index_path(args.root, args.patch_names_file)
    index = PatchIndex(index_file, [key])
    probed = probe_names(index, 0)
    loose = open_features(args.root, args.features_dir, key, probed, args.size, prefixes, packed=False)
    noted = read_made_by(loose.folder, key)
    made_by = {prefix: noted[prefix] for prefix in prefixes.values() if prefix in noted}
    metadata = PackedMetadata(key, args.size, find_width(loose, probed), prefixes, made_by)
    packing.init_folder(folder, metadata)
    rows = max(1, int(args.shard_gb * 2**30 / metadata.patch_bytes))
    there = shards.count_patches(folder)
    bar = tqdm(total=len(index), initial=there, unit="patch", desc=key)
    bad = 0

    def keep_readable(patches: Iterable[PackedPatch | InputError]) -> Iterator[PackedPatch]:
        nonlocal bad
        for patch in patches:
            bar.update()
            if isinstance(patch, PackedPatch):
                yield patch
            elif args.on_error == "raise":
                raise patch
            else:
                bad += 1
                tqdm.write(f"left out: {patch}", file=sys.stderr)

    names = packing.missing_names(folder, iterate_names(index_file, key))
    number = max(shards.list_shards(folder), default=-1) + 1
    # closed here, not by the garbage collector: that may run in a thread being started, which the reading threads wait for
    with bar, closing(packing.read_patches(loose, names, metadata, args.workers)) as read:
        patches = keep_readable(read)
        while packing.write_shard(folder, number, metadata, islice(patches, rows), rows):
            number += 1
    total = write_table(folder)
    print(f"{key}: {total} of {len(index)} patches packed in {number} shards, {total - there} of them now")
    print(f"in {folder}")
    if bad:
        print(f"{bad} left out, whose features are missing or bad; the lines above name them")
    return 1 if bad else 0


def find_width(features: FeatureStore, names: list[str]) -> int:
    """Return the width of the embeddings of the first patch that has readable ones. Raises InputError when none has."""
    failure = InputError("no patch to pack")
    for name in names:
        try:
            return features.read_part(TOKENS.name, name).shape[1]
        except InputError as error:
            failure = error
    raise failure


def verify(folder: Path, args: argparse.Namespace) -> int:
    """Read every chunk of every shard, testing its checksum; compare the loose files that are there, and the table.

    Return the exit code.
    """
    metadata = require_metadata(folder)
    loose = open_loose(metadata, args)
    table = open_table(folder)
    count, wrong = 0, []
    for number in tqdm(shards.list_shards(folder), unit="shard"):
        try:
            differing = 0
            for patch in shards.read_shard(shards.shard_path(folder, number), metadata.prefixes):
                count += 1
                differing += loose is not None and differs(patch, loose)
            if differing:
                where = shards.shard_path(folder, number)
                wrong.append(f"{where}: {differing} patches differ from their loose files; delete it and pack again")
        except InputError as error:
            wrong.append(str(error))
    try:
        if not np.array_equal(build_table(folder), table):
            wrong.append(f"{folder / TABLE} does not tell what the shards hold; run tools/pack_features.py again")
    except InputError as error:
        wrong.append(str(error))
    for line in dict.fromkeys(wrong):
        print(line, file=sys.stderr)
    print(f"{count} patches read in {folder}; {'all sound' if not wrong else 'damaged'}")
    return 1 if wrong else 0


def open_loose(metadata: PackedMetadata, args: argparse.Namespace) -> FeatureStore | None:
    """Open the loose features of what is packed; None where there are none."""
    key, where = metadata.key, (metadata.patch_size, metadata.prefixes)
    try:
        index = PatchIndex(index_path(args.root, args.patch_names_file), [key])
        return open_features(args.root, args.features_dir, key, probe_names(index, 0), *where, packed=False)
    except MissingError:
        return None


def differs(patch: PackedPatch, loose: FeatureStore) -> bool:
    """Tell whether a patch has loose files of other values; one without them has not."""
    try:
        record = loose.read(patch.name)
    except MissingError:
        return False
    except InputError:
        return True
    return not all(np.array_equal(record[part], array) for part, array in patch.parts.items())


def unpack(folder: Path, args: argparse.Namespace) -> int:
    """Write the loose files of every packed patch, but for those that are there and whole.

    A damaged shard gives what can be read of it before the damage; the exit code is then 1.
    """
    metadata = require_metadata(folder)
    target = features_folder(args.root, args.features_dir)
    written, there, wrong = 0, 0, 0
    for number in shards.list_shards(folder):
        try:
            shard = shards.read_shard(shards.shard_path(folder, number), metadata.prefixes)
            for patch in tqdm(shard, unit="patch", leave=False):
                for part, array in patch.parts.items():
                    path = feature_path(target, patch.name, metadata.prefixes[part])
                    if is_valid(path, array.shape):
                        there += 1
                    else:
                        write_feature(path, array)
                        written += 1
        except InputError as error:
            wrong += 1
            tqdm.write(str(error), file=sys.stderr)
    print(
        f"{written} files written below {target}; {there} were there" + (f"; {wrong} shards damaged" if wrong else "")
    )
    return 1 if wrong else 0


def require_metadata(folder: Path) -> PackedMetadata:
    """Read what lies packed in a folder. Raises InputError where nothing does."""
    metadata = packed_metadata.read_metadata(folder)
    if metadata is None:
        raise InputError(
            f"no packed features in {folder}; check --dataset_name, --size and the prefixes, or pack first"
        )
    return metadata


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__ or "", EXAMPLES, networks=False, draws=False)
    add = parser.add_argument
    add("--dataset_name", required=True, help="data set of the index: its key <dataset_name>_<size>")
    add("--size", type=positive_int, default=1024, help="pixels a side of its patches [%(default)s]")
    add("--patch_names_file", type=path_text, default=DEFAULT_INDEX, help="index in ROOT/patches/metadata")
    add(
        "--features_dir",
        type=path_text,
        help="folder of the loose features below ROOT [beside the images, else features]",
    )
    add("--vae_prefix", type=plain_name, default=VAE_PREFIX, help="ending of the latent files")
    add("--ssl_prefix", type=plain_name, default=SSL_PREFIX, help="ending of the embedding files")
    add("--out", type=output_folder, help="folder of packed sets [ROOT/packed, where data sets look]")
    add("--shard_gb", type=positive_float, default=4.0, help="gigabytes of a shard; a stopped run loses one at most")
    add("--workers", type=positive_int, default=4, help="threads that read ahead")
    add("--on_error", choices=("raise", "skip"), default="raise", help="what to do with a patch of bad features")
    add("--unpack", action="store_true", help="write the loose files again")
    add(
        "--verify",
        action="store_true",
        help="test every checksum of what is packed, and compare with the loose files that are there",
    )
    args = parser.parse_args()
    if args.unpack and args.verify:
        raise InputError("--unpack and --verify are two calls; unpacking tests the checksums too")
    return args


if __name__ == "__main__":
    run(main)
