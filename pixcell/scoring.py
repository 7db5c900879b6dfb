"""Scores of synthetic images against real ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.evaluation.metrics.scores import REPLICATES, Scores
from diffusion.evaluation.metrics.scores import score as score_features
from diffusion.evaluation.sets.embedding import embed_set
from diffusion.evaluation.sets.features import Features
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.formats import METRICS, WINDOW
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import prepare_device
from diffusion.utils.launch import start_processes
from diffusion.utils.text import default_root
from diffusion.utils.windows import cut_windows
from pixcell.pictures import Images, as_list, to_pil


def score(
    real: str | Path | Images,
    synthetic: str | Path | Images,
    *,
    encoder: str = "mobilenetv2",
    metrics: Sequence[str] = METRICS,
    on_size: str = "windows",
    seed: int = 0,
    bootstrap: int = REPLICATES,
    root: str | Path | None = None,
    device: str = "auto",
) -> Scores:
    """Score synthetic images against real ones, as `pixcell evaluate` does it.

    real, synthetic: folders of images, or sequences of images as `OpenRun.sample` takes them, which are cut into windows of
    256 pixels. A synthetic image belongs to the real one of the same name below its folder, or of the same number.
    encoder: as --encoders. on_size: of folders, what to do with images that are not 256 x 256: refuse, resize, windows.
    bootstrap: replicates for the intervals of distances. Returns values with their 95 % intervals by name, and notes.
    Raises MissingError, InputError.

    Examples:
        >>> scores = score("real", "synthetic", metrics=["fd", "similarity"], bootstrap=0)
        >>> sorted(scores.values)[:2]
        ['above_random', 'fd']
        >>> scores.values["fd"].value > 0
        True
    """
    place = prepare_device(device)
    embedder = PatchEmbedder.load(encoder, place, root=Path(root) if root is not None else default_root())
    features = [_features(images, embedder, on_size) for images in (real, synthetic)]
    sums = place if place.type == "cuda" else torch.device("cpu")  # float64, which MPS has not
    return score_features(*features, metrics=metrics, seed=seed, replicates=bootstrap, device=sums)


def _features(images: str | Path | Images, embedder: PatchEmbedder, on_size: str) -> Features:
    if isinstance(images, (str, Path)):
        with TemporaryDirectory() as cache:
            found = embed_set(
                ImageSet.open(Path(images), on_size), embedder, Path(cache), start_processes(embedder.device)
            )
            return _in_memory(found)
    windows = []
    for image in as_list(images):
        pixels = torch.from_numpy(np.array(to_pil(image))).permute(2, 0, 1)[None]
        if min(pixels.shape[2:]) < WINDOW:
            raise InputError(
                f"an image of {pixels.shape[2]} x {pixels.shape[3]} pixels: expected {WINDOW} or more a side"
            )
        windows.append(cut_windows(pixels, WINDOW))
    return Features.from_tensor(embedder.embed(torch.cat(windows)), embedder.name)


def _in_memory(features: Features) -> Features:
    """Return features that do not need the files of their parts."""
    arrays = [load() for load in features.parts]
    return dataclasses.replace(features, parts=[lambda array=array: array for array in arrays])
