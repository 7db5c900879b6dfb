"""List the patches of data sets in the index that training and sampling read, and split it into train and test.

Each data set becomes one key, <dataset>_<size>; its names replace those it had, and the other keys of the index stay.
With --split, patch_names_train.hdf5 and patch_names_test.hdf5 beside the index share out all that it lists.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from tqdm import tqdm

from diffusion.cli import positive_int, run, tool_parser
from diffusion.errors import InputError, MissingError

EXAMPLES = """  python tools/build_index.py
  python tools/build_index.py --dataset demo --size 1024
  python tools/build_index.py --split 0.95 --split_by patient
  python tools/build_index.py --dataset mine --names names.txt
"""


def main() -> None:
    args = parse_args()
    from diffusion.data.index import index_keys, index_path, write_index

    patches = args.root / "patches"
    out = args.out or index_path(args.root)
    found = {}
    for dataset in args.dataset or datasets_in(patches):
        names = listed(args.names, dataset) if args.names else scan(patches, dataset, args.size, bool(args.dataset))
        first = next(names, None)
        if first is not None:  # names go on being read while they are written: there may be millions
            found[f"{dataset}_{args.size}"] = tqdm(chain([first], names), desc=dataset, unit="patch", leave=False)
    if not found:
        raise MissingError(
            f"no single_{args.size}/**/*.jpeg in {patches}; make patches with tools/extract_patches.py, or set --size"
        )
    for key, count in write_index(out, found, before=out if out.exists() else None).items():
        print(f"{key}: {count} patches")
    kept = [key for key in index_keys(out) if key not in found]
    if kept:
        print(f"as before: {', '.join(kept)}")
    print(f"written: {out}")
    if args.split is not None:
        split(out, args.split, args.split_by, args.seed)


def datasets_in(patches: Path) -> list[str]:
    """Every data set in ROOT/patches. Raises MissingError when there is none."""
    from diffusion.data.slides import natural_key

    names = [folder.name for folder in patches.iterdir() if folder.is_dir()] if patches.is_dir() else []
    names = [name for name in names if name != "metadata" and not name.startswith(".")]
    if not names:
        raise MissingError(f"no data set in {patches}; make patches with tools/extract_patches.py, or set --root")
    return sorted(names, key=natural_key)


def scan(patches: Path, dataset: str, size: int, named: bool) -> Iterator[str]:
    """The names of a data set's patches. One that the user named and that has none is an error, another is passed over."""
    from diffusion.data.slides import list_patches

    empty = True
    for name in list_patches(patches, dataset, size):
        empty = False
        yield name
    if empty and named:
        raise MissingError(
            f"no single_{size}/**/*.jpeg in {patches / dataset}; make patches with tools/extract_patches.py, or set --size"
        )


def listed(files: list[Path], dataset: str) -> Iterator[str]:
    """The names in text files, one a line. Raises MissingError, or InputError for a line that is no patch of the data set."""
    for file in files:
        if not file.is_file():
            raise MissingError(f"--names: no file {file}")
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                name = line.strip()
                if name and (not name.startswith(f"{dataset}/") or ".." in name.split("/")):
                    raise InputError(f"{file}, line {number}: {name!r} is no path {dataset}/... below ROOT/patches")
                if name:
                    yield name


def split(index: Path, share: float, by: str, seed: int) -> None:
    """Write the train and the test index beside `index`, both or none of them."""
    from diffusion.data.index import all_names, index_keys, write_index
    from diffusion.data.split import GROUPS, training_groups
    from diffusion.files import written_aside

    group, keys = GROUPS[by], index_keys(index)
    training = training_groups((group(name) for key in keys for name in all_names(index, key)), share, seed)
    sides = {"train": True, "test": False}
    with ExitStack() as together:
        for side, trains in sides.items():
            target = together.enter_context(written_aside(index.with_name(f"patch_names_{side}.hdf5")))
            names = {
                key: (name for name in all_names(index, key) if (group(name) in training) is trains) for key in keys
            }
            counts = write_index(target, names)
            print(f"{side}: " + ", ".join(f"{key} ({count})" for key, count in counts.items() if count))
    print(f"written: patch_names_train.hdf5, patch_names_test.hdf5 beside it; no {by} is in both")


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES, networks=False)
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="folders of ROOT/patches [all but metadata]")
    parser.add_argument(
        "--size", type=positive_int, default=1024, help="take the patches of this many pixels a side [%(default)s]"
    )
    parser.add_argument(
        "--names", type=Path, nargs="+", metavar="FILE", help="take the names in these lists, not those on the disk"
    )
    parser.add_argument("--split", type=share, metavar="SHARE", help="part of the slides or patients that trains")
    parser.add_argument("--split_by", choices=("slide", "patient"), default="slide", help="what is never on both sides")
    parser.add_argument("--out", type=Path, help="the index [ROOT/patches/metadata/patch_names_all.hdf5]")
    args = parser.parse_args()
    if args.names and len(args.dataset or ()) != 1:
        raise InputError("--names needs one --dataset: the first folder of the names, and of the key")
    return args


def share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number between 0 and 1, such as 0.95")
    return value


if __name__ == "__main__":
    run(main)
