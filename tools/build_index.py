"""List the patches of data sets in the index that training and sampling read.

Each data set becomes one key, <dataset>_<size>; its names replace those it had, and the other keys of the index stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from tqdm import tqdm

from diffusion.cli import positive_int, run, tool_parser
from diffusion.errors import MissingError

EXAMPLES = """  python tools/build_index.py
  python tools/build_index.py --dataset demo --size 1024
"""


def main() -> None:
    args = parse_args()
    from diffusion.data.index import index_path, write_index

    patches = args.root / "patches"
    datasets = args.dataset or datasets_in(patches)
    found = {
        f"{dataset}_{args.size}": scan(patches, dataset, args.size, named=bool(args.dataset)) for dataset in datasets
    }
    found = {key: names for key, names in found.items() if names}
    if not found:
        raise MissingError(
            f"no single_{args.size}/**/*.jpeg in {patches}; make patches with tools/extract_patches.py, or set --size"
        )
    out = args.out or index_path(args.root)
    kept = other_names(out, found)
    write_index(out, {**kept, **found})
    for key, names in found.items():
        print(f"{key}: {len(names)} patches, {names[0]} to {names[-1]}")
    if kept:
        print("as before: " + ", ".join(f"{key} ({len(names)})" for key, names in kept.items()))
    print(f"written: {out}")


def datasets_in(patches: Path) -> list[str]:
    """Every data set in ROOT/patches. Raises MissingError when there is none."""
    from diffusion.data.slides import natural_key

    names = [folder.name for folder in patches.iterdir() if folder.is_dir()] if patches.is_dir() else []
    names = [name for name in names if name != "metadata" and not name.startswith(".")]
    if not names:
        raise MissingError(f"no data set in {patches}; make patches with tools/extract_patches.py, or set --root")
    return sorted(names, key=natural_key)


def scan(patches: Path, dataset: str, size: int, named: bool) -> list[str]:
    """The names of a data set's patches. A data set named by the user that has none is an error, another one is passed over."""
    from diffusion.data.slides import list_patches

    names = list(tqdm(list_patches(patches, dataset, size), desc=dataset, unit="patch", leave=False))
    if not names and named:
        raise MissingError(
            f"no single_{size}/**/*.jpeg in {patches / dataset}; make patches with tools/extract_patches.py, or set --size"
        )
    return names


def other_names(path: Path, replaced: dict[str, list[str]]) -> dict[str, list[str]]:
    """What an index that is there already holds under other keys."""
    from diffusion.data.index import open_index

    if not path.exists():
        return {}
    with open_index(path) as file:
        return {key: [name.decode("utf-8") for name in file[key][:]] for key in file if key not in replaced}


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES, networks=False)
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="folders of ROOT/patches [all but metadata]")
    parser.add_argument(
        "--size", type=positive_int, default=1024, help="take the patches of this many pixels a side [%(default)s]"
    )
    parser.add_argument("--out", type=Path, help="the index [ROOT/patches/metadata/patch_names_all.hdf5]")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
