"""The commands of `pixcell`: a function each, with explicit arguments, in a module that imports nothing large."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

# heading -> command -> module and function in this package, and the first line of its help
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "data": {
        "patches": ("patches:patches", "Cut slides and images into square patches of tissue"),
        "pairs": (
            "pairs:pairs",
            "Make pairs of patches from images or slides of the same tissue in two stains, for virtual staining",
        ),
        "import": (
            "import_features:import_features",
            "Take over UNI2-h embeddings that TRIDENT or CLAM computed, so that only latents are left to compute",
        ),
        "index": ("index:index", "List the patches of data sets in the index that training and sampling read"),
        "verify": ("verify:verify", "Read every image and feature file of an index, and list what is wrong"),
        "inspect": ("inspect:inspect", "Show what an index holds: patches, slides, features, and a sheet of pictures"),
        "features": ("features:features", "Extract latents and embeddings of every indexed patch"),
        "masks": ("masks:masks", "Make masks of nuclei for every indexed patch, which a ControlNet is trained with"),
        "pack": ("pack:pack", "Pack features into HDF5 shards, from which training reads a crop at once"),
        "demo-data": ("demo_data:demo_data", "Fetch the demo's real tissue and small network weights"),
    },
    "training": {
        "train": ("train:train", "Train a diffusion transformer on the latents and embeddings of indexed patches"),
        "stages": ("stages:stages", "Train stage after stage, each from the weights of the one before"),
        "prior": (
            "prior:prior",
            "Train a prior: a flow from noise to the embeddings of an index, by which images are sampled without any patch",
        ),
        "train-codec": (
            "train_codec:train_codec",
            "Train the small latent codec: 16 channels at an eighth of the resolution",
        ),
        "average": (
            "average:average",
            "Average the weights of a run over any length, after training, from its snapshots",
        ),
        "plot": ("plot:plot", "Draw the curves of runs into one picture"),
    },
    "sampling": {
        "sample": ("sample:sample", "Sample images of a run, or of released weights"),
        "large": ("large:large", "Sample pictures of any size, in windows that are blended"),
        "edit": (
            "edit:edit",
            "Edit pictures: vary, repair, extend, enlarge them, and give them another look or other colours",
        ),
        "studio": (
            "studio:studio",
            "Look at slides in the browser, click, and sample, vary, repair, extend, enlarge or stain what is there",
        ),
        "stain": ("stain:stain", "Stain H&E virtually: images, folders, a part of a slide or a whole slide"),
        "block-cache": (
            "block_cache:block_cache",
            "Find at which steps the blocks of a network are best computed, and at which predicted from earlier steps",
        ),
        "vary": ("vary:vary", "Sample variations of images, and images between two, as one picture"),
    },
    "scores": {
        "evaluate": (
            "evaluate:evaluate",
            "Score synthetic images against real ones, and write a page that opens in any browser",
        ),
        "sweep": ("sweep:sweep", "Sample a run at many settings, score each, and say which is best"),
        "probe": (
            "probe:probe",
            "Measure how useful synthetic patches are to classifiers that are tested on real ones",
        ),
        "codec": ("codec:codec", "Measure how well latent codecs reconstruct your own patches"),
    },
    "weights": {
        "download": ("download:download", "Fetch released weights from huggingface.co into ROOT/pretrained_models"),
        "convert": ("convert:convert", "Convert weights between the formats that they come in, to the bit"),
        "push": (
            "push:push",
            "Publish the weights of a run on huggingface.co, with a model card that names the terms of all its parts",
        ),
    },
    "machine": {
        "bench": (
            "bench:bench",
            "Measure this machine beside a peer: training, sampling, large pictures, extraction, reading, start",
        ),
        "doctor": ("doctor:doctor", "Check this machine for what the commands need: packages, GPU, disks, weights"),
    },
}


def load_command(name: str) -> Callable[..., Any]:
    """Return the function of a command."""
    module, _, function = next(group[name][0] for group in COMMANDS.values() if name in group).partition(":")
    return getattr(import_module(f"diffusion.cli.commands.{module}"), function)
