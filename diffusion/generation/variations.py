"""Variations of images: samples for their embeddings, and between two of them, as one labelled picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from diffusion.generation.conditions import NamedCondition, load_image_conditions, slerp
from diffusion.generation.controls import ControlledConditions, list_controls, load_controls
from diffusion.generation.generators import ImageMaker
from diffusion.generation.image_files import labelled_grid
from diffusion.generation.priors import PriorConditions
from diffusion.generation.session import Session
from diffusion.generation.sources import open_source_prior
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import windows_per_pass


class Variations(NamedTuple):
    """A labelled picture, uint8 (3, H, W): a row for each image, itself first, then one of what lies between two.

    names: of the images, or of the classes that a prior has drawn. samples: how many.
    """

    picture: torch.Tensor
    names: list[str]
    samples: int


def check_variations(images: int, variations: int, between: int | None) -> int:
    """Return how many samples lie between two images, None: 5 of two images, else 0.

    Raises InputError for some between fewer or more than two images, for one alone, and for nothing to sample.
    """
    if between is None:
        between = 5 if images == 2 else 0
    if between and (images != 2 or between == 1):
        raise InputError("--between: expected two images, or two of --class, and two or more from one to the other")
    if not variations and not between:
        raise InputError("nothing to sample: give --variations, or two images and --between")
    return between


def sample_variations(
    session: Session,
    images: Sequence[Path],
    variations: int = 4,
    between: int | None = None,
    batch_size: int | None = None,
    image_mpp: float | None = None,
    control: Sequence[Path] = (),
    prior: Path | None = None,
    classes: Sequence[str] = (),
) -> Variations:
    """Sample for the embeddings of images, in their middle where they are larger than the network's size.

    variations: for each. between: on the arc from the first to the second of two, None: 5 of two images. batch_size: images in one
    pass, None: as many as keep the device busy. image_mpp: microns per pixel of the images, None: taken pixel for pixel. control:
    masks or images that control the samples of each image, in their order; between two, that of the first. prior: a flow that
    draws embeddings instead, one of each of `classes`, or one of any.
    Raises MissingError, InputError.
    """
    config = session.run.config
    if prior is None:
        originals = load_image_conditions(images, session.embedder, config.image_size, image_mpp)
    else:
        drawn = [PriorConditions(open_source_prior(session, prior, [name]), session.seed) for name in classes]
        drawn = drawn or [PriorConditions(open_source_prior(session, prior, ()), session.seed)]
        originals = [conditions[number] for number, conditions in enumerate(drawn)]
    between = check_variations(len(originals), variations, between)
    files = list_controls(control)
    if files:
        controlled = ControlledConditions(originals, load_controls(files, session.run, session.codec))
        originals = [replace(controlled[i], name=original.name) for i, original in enumerate(originals)]
    # Column by column the same noise, so that what differs within a column is the condition's doing.
    jobs = [(original, f"variation {n}", n) for original in originals for n in range(variations)]
    for part in torch.linspace(0, 1, between).tolist():
        first, second = (original.condition.tokens for original in originals)
        way = originals[0].condition.replace_tokens(slerp(first, second, part), keep_control=True)
        jobs.append((NamedCondition("", way), f"{part:.2f} of the way", 0))
    make = ImageMaker(session.run, session.codec, [condition for condition, _, _ in jobs], session.seed, session.solver)
    batch_size = batch_size or windows_per_pass(session.device, config.input_size)
    sampled: list[torch.Tensor] = []
    with tqdm(total=len(jobs), unit="image") as progress:
        for start in range(0, len(jobs), batch_size):
            batch = range(start, min(start + batch_size, len(jobs)))
            for _, _, pixels in make.images(list(batch), noises=[jobs[i][2] for i in batch]):
                sampled.append(pixels)
                progress.update()

    labels = [label for _, label, _ in jobs]
    rows = []
    for i, original in enumerate(originals):
        own = slice(i * variations, (i + 1) * variations)
        samples = list(zip(labels[own], sampled[own], strict=True))
        if original.pixels is not None:
            samples.insert(0, (original.name, original.pixels))
        elif samples:
            samples[0] = (original.name, samples[0][1])
        if samples:
            rows.append(samples)
    if between:
        rows.append(list(zip(labels[-between:], sampled[-between:], strict=True)))
    return Variations(labelled_grid(rows), [original.name for original in originals], len(jobs))
