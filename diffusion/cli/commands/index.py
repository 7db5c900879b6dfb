"""pixcell index."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import fraction
from diffusion.cli.signature import Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.formats import DEFAULT_INDEX


def part(text: str) -> float:
    """Convert an argument to a number between 0 and 1, neither of them."""
    value = fraction(text)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"got {text}, expected a number between 0 and 1, such as 0.95")
    return value


Names = Annotated[
    Sequence[Path], Option("take the names in these lists, one a line, not those on the disk", metavar="FILE")
]
Share = Annotated[float | None, Option("part of the slides or patients that trains", part, metavar="SHARE")]
SplitBy = Annotated[Literal["slide", "patient"], Option("what is never on both sides")]
Patients = Annotated[
    Path | None,
    Option(
        "CSV file with the columns slide and patient [TCGA barcodes name patients, other slides are on their own]",
        metavar="FILE",
    ),
]


@checked
def index(
    dataset: options.NewDatasets = None,
    size: options.Size = 1024,
    names: Names = (),
    split: Share = None,
    split_by: SplitBy = "slide",
    patients: Patients = None,
    index: options.DataIndex = DEFAULT_INDEX,
    seed: options.Seed = 0,
    root: options.Root = None,
    *,
    published: bool = False,
) -> None:
    """List the patches of data sets in the index that training and sampling read.

    Each data set becomes one key, <dataset>_<size>; its names replace those it had, and the other keys of the index stay. With
    --split, patch_names_train.hdf5 and patch_names_test.hdf5 beside the index share out all that it lists; a slide or patient
    that was on one side before stays there.

    Examples:
      pixcell index
      pixcell index --dataset demo --size 1024
      pixcell index --split 0.95 --split-by patient --patients patients.csv
      pixcell index --dataset mine --names names.txt
    """
    from tqdm import tqdm

    from diffusion.data.index.listing import collect_names
    from diffusion.data.index.patch_index import index_keys, index_path
    from diffusion.data.index.writer import write_index
    from diffusion.formats import PATCHES_DIR
    from diffusion.utils.errors import InputError
    from diffusion.utils.text import default_root

    if names and len(dataset or ()) != 1:
        raise InputError("--names needs one --dataset: the first folder of the names, and of the key")
    if patients is not None and (split is None or split_by != "patient"):
        raise InputError("--patients belongs to --split SHARE --split-by patient")
    if split is None:
        refuse_unused(index_patches, {"split_by": split_by, "seed": seed}, "without --split", published)
    root = root or default_root()
    path = index_path(root, index)
    found = collect_names(root / PATCHES_DIR, dataset, size, names)
    shown = {
        key: tqdm(each, desc=key.removesuffix(f"_{size}"), unit="patch", leave=False) for key, each in found.items()
    }
    for key, count in write_index(path, shown, previous=path if path.exists() else None).items():
        print(f"{key}: {count} patches")
    kept = [key for key in index_keys(path) if key not in found]
    if kept:
        print(f"as before: {', '.join(kept)}")
    print(f"written: {path}")
    if split is not None:
        print_split(path, split, split_by, seed, patients)
    elif path.with_name("patch_names_train.hdf5").is_file():
        print("patch_names_train.hdf5 and patch_names_test.hdf5 are as before; give --split to bring them up to date")


def print_split(
    path: Path, share: float, by: Literal["slide", "patient"], seed: int, patients: Path | None = None
) -> None:
    """Write the train and the test index, and tell what is in them."""
    from diffusion.data.index.split import write_split

    done = write_split(path, share, by, seed, patients)
    for side, counts in done.counts.items():
        print(f"{side}: " + ", ".join(f"{key} ({count})" for key, count in counts.items() if count))
    slides = 0
    if by == "patient" and patients is None:
        slides = sum(not each.startswith("TCGA-") for each in done.groups)
    kept_apart = "slide" if by == "slide" or slides == len(done.groups) else by
    print(f"written: patch_names_train.hdf5, patch_names_test.hdf5 beside it; no {kept_apart} is in both")
    if done.kept:
        print(f"{done.kept} {kept_apart}s stay on the side they were on; delete both files to split anew")
    if slides:
        print(
            f"{slides} slides have no TCGA barcode, which would name their patient, and were split by slide; name patients in a "
            "table: --patients FILE"
        )


index_patches = index  # within the command, `index` is the file
