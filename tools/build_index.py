"""List the patches of data sets in the index that training and sampling read; split that into train and test; verify it.

Each data set becomes one key, <dataset>_<size>; its names replace those it had, and the other keys of the index stay.
With --split, patch_names_train.hdf5 and patch_names_test.hdf5 beside the index share out all that it lists.
With --verify nothing is listed anew: every image and feature file of the index is read, and what is wrong goes to
patch_names_wrong.txt beside it, exit code 1; --prune then writes patch_names_clean.hdf5 without those patches.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli import options
from diffusion.cli.commands.index import Names, Share, SplitBy, index
from diffusion.cli.commands.verify import ImagesOnly, Prune, verify
from diffusion.cli.parser import output_file, run
from diffusion.cli.script import DATA_FLAGS, Script
from diffusion.cli.signature import Option
from diffusion.formats import DEFAULT_INDEX, SSL_PREFIX, VAE_PREFIX
from diffusion.utils.errors import InputError

EXAMPLES = """  python tools/build_index.py
  python tools/build_index.py --dataset demo --size 1024
  python tools/build_index.py --split 0.95 --split_by patient
  python tools/build_index.py --dataset mine --names names.txt
  python tools/build_index.py --verify --workers 16 --prune
"""


def index_or_verify(
    dataset: options.AnyDatasets = None,
    size: options.Size = 1024,
    names: Names = (),
    split: Share = None,
    split_by: SplitBy = "slide",
    to_verify: Annotated[bool, Option("check what the index lists, and build nothing")] = False,
    images_only: ImagesOnly = False,
    features: options.DataFeatures = None,
    latent_suffix: options.LatentSuffix = VAE_PREFIX,
    embedding_suffix: options.EmbeddingSuffix = SSL_PREFIX,
    workers: options.WorkersPerCore = None,
    prune: Prune = False,
    out: Annotated[Path | None, Option("the index [ROOT/patches/metadata/patch_names_all.hdf5]", output_file)] = None,
    root: options.Root = None,
    seed: options.Seed = 0,
) -> int | None:
    """Call one of the two commands that this script was published with."""
    file = DEFAULT_INDEX if out is None else str(out.absolute())
    if to_verify:
        if names or split is not None:
            raise InputError("--verify checks the index that is there; build and split it in a call before")
        return verify(
            dataset, file, images_only, features, latent_suffix, embedding_suffix, workers, prune, root, published=True
        )
    if prune or images_only:
        raise InputError("--prune and --images_only belong to --verify")
    return index(dataset, size, names, split, split_by, index=file, seed=seed, root=root, published=True)


main = Script(index_or_verify, __doc__, EXAMPLES, {**DATA_FLAGS, "to_verify": ("--verify",)}, unused=("device",))

if __name__ == "__main__":
    run(main)
