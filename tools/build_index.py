"""List the patches of data sets in the index that training and sampling read; split that into train and test; verify it.

Each data set becomes one key, <dataset>_<size>; its names replace those it had, and the other keys of the index stay.
With --split, patch_names_train.hdf5 and patch_names_test.hdf5 beside the index share out all that it lists.
With --verify nothing is listed anew: every image and feature file of the index is read, and what is wrong goes to
patch_names_wrong.txt beside it, exit code 1; --prune then writes patch_names_clean.hdf5 without those patches.
"""

from __future__ import annotations

import argparse
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

import numpy as np
from tqdm import tqdm

from diffusion.cli.parser import output_file, path_text, plain_name, positive_int, run, tool_parser
from diffusion.formats import METADATA_DIR, PATCHES_DIR, SSL_PREFIX, VAE_PREFIX
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.hardware import count_cores
from diffusion.utils.text import iterate_lines

EXAMPLES = """  python tools/build_index.py
  python tools/build_index.py --dataset demo --size 1024
  python tools/build_index.py --split 0.95 --split_by patient
  python tools/build_index.py --dataset mine --names names.txt
  python tools/build_index.py --verify --workers 16 --prune
"""


def main() -> int:
    args = parse_args()
    from diffusion.data.index.patch_index import index_path

    index = args.out or index_path(args.root)
    if args.verify:
        return verify(index, args)
    build(index, args)
    if args.split is not None:
        write_split(index, args.split, args.split_by, args.seed)
    elif index.with_name("patch_names_train.hdf5").is_file():
        print("patch_names_train.hdf5 and patch_names_test.hdf5 are as before; give --split to bring them up to date")
    return 0


def build(out: Path, args: argparse.Namespace) -> None:
    """Write the names of the data sets asked for, beside what the index has of others."""
    from diffusion.data.index.patch_index import index_keys
    from diffusion.data.index.writer import write_index

    patches = args.root / PATCHES_DIR
    found = {}
    for dataset in args.dataset or datasets_in(patches):
        names = (
            read_name_lists(args.names, dataset)
            if args.names
            else scan_patches(patches, dataset, args.size, bool(args.dataset))
        )
        first = next(names, None)
        if first is not None:  # names go on being read while they are written: there may be millions
            found[f"{dataset}_{args.size}"] = tqdm(chain([first], names), desc=dataset, unit="patch", leave=False)
    if not found:
        raise no_patches(patches, args.size)
    for key, count in write_index(out, found, previous=out if out.exists() else None).items():
        print(f"{key}: {count} patches")
    kept = [key for key in index_keys(out) if key not in found]
    if kept:
        print(f"as before: {', '.join(kept)}")
    print(f"written: {out}")


def datasets_in(patches: Path) -> list[str]:
    """List every data set in ROOT/patches. Raises MissingError when there is none."""
    from diffusion.utils.folders import is_hidden, natural_key

    names = [folder.name for folder in patches.iterdir() if folder.is_dir()] if patches.is_dir() else []
    names = [name for name in names if name != METADATA_DIR and not is_hidden(name)]
    if not names:
        raise MissingError(f"no data set in {patches}; make patches with tools/extract_patches.py, or set --root")
    return sorted(names, key=natural_key)


def scan_patches(patches: Path, dataset: str, size: int, named: bool) -> Iterator[str]:
    """Yield the names of a data set's patches. One without patches is an error where the user named it, else skipped."""
    from diffusion.data.slides.patches import list_patches

    empty = True
    for name in list_patches(patches, dataset, size):
        empty = False
        yield name
    if empty and named:
        raise no_patches(patches / dataset, size)


def no_patches(folder: Path, size: int) -> MissingError:
    """Return the error for a folder without patches of a size, which names the sizes that there are."""
    from diffusion.data.slides.patches import PATCH_SUFFIXES, list_patch_sizes

    advice = "make patches with tools/extract_patches.py"
    if sizes := list_patch_sizes(folder):
        advice = f"there are patches of {', '.join(map(str, sizes))} pixels, so set --size"
    return MissingError(f"no single_{size}/ with images ({', '.join(PATCH_SUFFIXES)}) in {folder}; {advice}")


def read_name_lists(files: list[Path], dataset: str) -> Iterator[str]:
    """Yield the names in text files, one a line. Raises MissingError, or InputError for a line that is no patch of the data set."""
    from diffusion.data.index.names import name_fault

    for file in files:
        if not file.is_file():
            raise MissingError(f"--names: no file {file}")
        for number, line in enumerate(iterate_lines(file), start=1):
            name = line.strip()
            if name and (not name.startswith(f"{dataset}/") or name_fault(name)):
                raise InputError(f"{file}, line {number}: {name!r} is no path {dataset}/... below ROOT/patches")
            if name:
                yield name


def write_split(index: Path, share: float, by: str, seed: int) -> None:
    """Write the train and the test index beside `index`, both or none of them."""
    from diffusion.data.index.patch_index import index_keys, iterate_names
    from diffusion.data.index.split import GROUPINGS, choose_training_groups
    from diffusion.data.index.writer import write_index
    from diffusion.utils.files import atomic_write

    group, keys = GROUPINGS[by], index_keys(index)
    groups = {group(name) for key in keys for name in iterate_names(index, key)}
    previous = {
        side: indexed_groups(index.with_name(f"patch_names_{side}.hdf5"), group) & groups for side in ("train", "test")
    }
    training = choose_training_groups(groups, share, seed, previous["train"], previous["test"])
    sides = {"train": True, "test": False}
    with ExitStack() as together:
        for side, trains in sides.items():
            target = together.enter_context(atomic_write(index.with_name(f"patch_names_{side}.hdf5")))
            names = {
                key: (name for name in iterate_names(index, key) if (group(name) in training) is trains) for key in keys
            }
            counts = write_index(target, names)
            print(f"{side}: " + ", ".join(f"{key} ({count})" for key, count in counts.items() if count))
    print(f"written: patch_names_train.hdf5, patch_names_test.hdf5 beside it; no {by} is in both")
    if kept := len(previous["train"] | previous["test"]):
        print(f"{kept} {by}s stay on the side they were on; delete both files to split anew")
    slides = sum(not each.startswith("TCGA-") for each in groups)
    if by == "patient" and slides:
        print(f"{slides} slides have no TCGA barcode, which would name their patient: they were split by slide")


def indexed_groups(index: Path, group: Callable[[str], str]) -> frozenset[str]:
    """Return the groups of the patches in one side of a split made before; none without one."""
    from diffusion.data.index.patch_index import index_keys, iterate_names

    if not index.is_file():
        return frozenset()
    return frozenset(group(name) for key in index_keys(index) for name in iterate_names(index, key))


def verify(index: Path, args: argparse.Namespace) -> int:
    """Check all that the index lists, print a table, list the faults; return the exit code."""
    from diffusion.data.features.loose import LooseFeatures, features_folder
    from diffusion.data.features.parts import part_prefixes
    from diffusion.data.features.store import open_features, probe_names
    from diffusion.data.index.names import exclude_names, name_hash
    from diffusion.data.index.patch_index import PatchIndex, index_keys, iterate_names, split_key
    from diffusion.data.index.verify import PatchCheck, find_usual_widths, verify_patches
    from diffusion.data.index.writer import write_index
    from diffusion.utils.files import atomic_write

    keys = [key for key in index_keys(index) if not args.dataset or split_key(key)[0] in args.dataset]
    if not keys:
        raise MissingError(f"{index} has no key of {', '.join(args.dataset)}; it has {', '.join(index_keys(index))}")
    faulty, repeats = {}, 0
    listing = index.with_name("patch_names_wrong.txt")
    with atomic_write(listing) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for key in keys:
            patches, features, size = PatchIndex(index, [key]), None, split_key(key)[1]
            if not args.images_only:
                where = (size, part_prefixes(args.vae_prefix, args.ssl_prefix))
                try:
                    features = open_features(args.root, args.features_dir, key, probe_names(patches, 0), *where)
                except MissingError:  # of some patches; others may have theirs
                    features = LooseFeatures(features_folder(args.root, args.features_dir), *where)
            widths = {} if features is None else find_usual_widths(features, probe_names(patches, 0))
            check = PatchCheck(args.root, size, features, widths)
            faulty[key], seen, kinds = array("Q"), array("Q"), Counter()
            with closing(verify_patches(iterate_names(index, key), check, args.workers)) as checked:
                for name, faults in tqdm(checked, total=len(patches), desc=key, unit="patch", leave=False):
                    seen.append(name_hash(name))
                    kinds.update(fault.kind for fault in faults)
                    lines.writelines(f"{name}\t{fault.kind}\t{fault.reason}\n" for fault in faults)
                    if faults:
                        faulty[key].append(name_hash(name))
            if repeated := len(seen) - len(np.unique(np.frombuffer(seen, np.uint64))):
                kinds["named more than once"] = repeats = repeated
            found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            print(
                f"{key}: {len(patches)} patches, {len(patches) - len(faulty[key])} sound"
                + (f"; {found}" if found else "")
            )
    if any(faulty.values()):
        print(f"listed: {listing}")
    else:
        listing.unlink()
    if not any(faulty.values()) and not repeats:
        return 0
    if args.prune:
        clean = index.with_name("patch_names_clean.hdf5")
        clean_names = {
            key: exclude_names(iterate_names(index, key), np.array(faulty[key], dtype=np.uint64)) for key in keys
        }
        counts = write_index(clean, {key: unique_names(names) for key, names in clean_names.items()}, previous=index)
        print(f"written: {clean}, {sum(counts.values())} patches")
    return 1


def unique_names(names: Iterator[str]) -> Iterator[str]:
    """Yield every name once; takes some tens of bytes of memory for each."""
    from diffusion.data.index.names import name_hash

    seen: set[int] = set()
    for name in names:
        if (hashed := name_hash(name)) not in seen:
            seen.add(hashed)
            yield name


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__ or "", EXAMPLES, networks=False)
    parser.add_argument(
        "--dataset",
        nargs="+",
        metavar="NAME",
        help="folders of ROOT/patches; with --verify, of the index [all]",
    )
    parser.add_argument(
        "--size", type=positive_int, default=1024, help="take the patches of this many pixels a side [%(default)s]"
    )
    parser.add_argument(
        "--names", type=Path, nargs="+", metavar="FILE", help="take the names in these lists, not those on the disk"
    )
    parser.add_argument("--split", type=share, metavar="SHARE", help="part of the slides or patients that trains")
    parser.add_argument("--split_by", choices=("slide", "patient"), default="slide", help="what is never on both sides")
    parser.add_argument("--verify", action="store_true", help="check what the index lists, and build nothing")
    parser.add_argument("--images_only", action="store_true", help="verify the images, not the features")
    parser.add_argument(
        "--features_dir",
        type=path_text,
        help="folder of the features to verify [beside the images, else features, else packed]",
    )
    parser.add_argument(
        "--vae_prefix", type=plain_name, default=VAE_PREFIX, help="ending of the latent files to verify"
    )
    parser.add_argument(
        "--ssl_prefix", type=plain_name, default=SSL_PREFIX, help="ending of the embedding files to verify"
    )
    parser.add_argument(
        "--workers", type=positive_int, default=count_cores(), help="processes that verify [one per core]"
    )
    parser.add_argument("--prune", action="store_true", help="with --verify: write an index of the sound patches")
    parser.add_argument("--out", type=output_file, help="the index [ROOT/patches/metadata/patch_names_all.hdf5]")
    args = parser.parse_args()
    if args.names and len(args.dataset or ()) != 1:
        raise InputError("--names needs one --dataset: the first folder of the names, and of the key")
    building = args.names or args.split is not None
    if args.verify and building:
        raise InputError("--verify checks the index that is there; build and split it in a call before")
    if not args.verify and (args.prune or args.images_only):
        raise InputError("--prune and --images_only belong to --verify")
    return args


def share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number between 0 and 1, such as 0.95")
    return value


if __name__ == "__main__":
    run(main)
