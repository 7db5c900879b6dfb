"""Conditions without a patch in hand: embeddings that a prior draws, one image's from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion.condition import Condition
from diffusion.generation.conditions import NamedCondition
from diffusion.model.flow import EmbeddingFlow, load_flow
from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError
from diffusion.utils.seeds import mix_seed

STEPS = 20  # of Heun's method
PRIOR = 0x9121  # mixed into seeds, so that an image's noise is not that of its condition


@dataclass(frozen=True)
class Prior:
    """A flow from noise to embeddings, and the classes to draw from, by their numbers; None: all, as often as in training."""

    flow: EmbeddingFlow
    classes: tuple[int, ...] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of all classes."""
        return self.flow.config.classes

    def choose_label(self, seed: int) -> int | None:
        """Return the class of an image by its seed; None for a prior without classes."""
        if not self.class_names:
            return None
        numbers = self.classes or tuple(range(len(self.class_names)))
        shares = np.array([self.flow.config.shares[number] for number in numbers])
        if not shares.sum():
            names = ", ".join(self.class_names[number] for number in numbers)
            raise InputError(f"--class {names}: no image of {names} was trained on")
        return int(np.random.default_rng(seed).choice(numbers, p=shares / shares.sum()))

    def name_of(self, label: int | None) -> str:
        """Return the name of a class as a part of a file's name; `prior` of none."""
        return "prior" if label is None else file_name(self.class_names[label])

    def draw(self, seeds: Sequence[int], steps: int = STEPS) -> tuple[torch.Tensor, list[int | None]]:
        """Draw the tokens (N, L, D) of images, on the CPU, and their classes, each from its own seed."""
        config, device = self.flow.config, self.flow.device
        noise = torch.empty(len(seeds), config.tokens, config.size)
        for seed, part in zip(seeds, noise, strict=True):
            torch.randn(part.shape, generator=torch.Generator().manual_seed(seed), out=part)
        labels = [self.choose_label(seed) for seed in seeds]
        numbers = [label for label in labels if label is not None]
        label = torch.tensor(numbers, device=device) if numbers else None
        return self.flow.draw(noise.to(device), label, steps).float().cpu(), labels


class PriorConditions:
    """Conditions that a prior draws: number `i` follows from the seed and `i` alone. There are as many as are asked for."""

    def __init__(self, prior: Prior, seed: int):
        self.prior, self.seed = prior, seed

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> NamedCondition:
        tokens, labels = self.prior.draw([condition_seed(self.seed, i)])
        return NamedCondition(self.prior.name_of(labels[0]), Condition(tokens))

    def has_pixels(self, i: int) -> bool:
        """Tell whether condition `i` carries its tissue, which none does."""
        return False


def condition_seed(seed: int, i: int) -> int:
    """Return the seed of the condition of image `i`."""
    return mix_seed(mix_seed(seed, PRIOR), i)


def check_classes(prior: Path | None, classes: Sequence[str]) -> None:
    """Raise InputError for classes without a prior."""
    if classes and prior is None:
        raise InputError("--class names classes of a prior; give it with --prior")


def open_prior(
    path: Path, classes: Sequence[str], tokens: int | None, width: int, device: torch.device | str = "cpu"
) -> Prior:
    """Load a prior of embeddings of so many tokens and values.

    tokens: None for a prior of grids of any size, 4 tokens or more. Raises MissingError, and InputError for another flow or class.
    """
    flow = load_flow(path).to(device)
    config = flow.config
    if not config.from_noise:
        raise InputError(
            f"{path} translates embeddings: expected a prior, which begins at noise; such a flow goes with --flow"
        )
    if tokens is None and config.tokens == 1:
        raise InputError(
            f"{path} draws single embeddings, which say nothing about their neighbours in a large picture: expected a prior of "
            "grids, trained with --size 512 or 1024"
        )
    tokens = tokens or config.tokens
    if (config.tokens, config.width) != (tokens, width):
        raise InputError(
            f"{path} draws {config.tokens} tokens of {config.width} values: the network takes {tokens} of {width}"
        )
    unknown = [name for name in classes if name not in config.classes]
    if unknown:
        known = f"there are {', '.join(config.classes)}" if config.classes else "it was trained without classes"
        raise InputError(f"--class {unknown[0]}: {path} has no such class; {known}")
    return Prior(flow, tuple(config.classes.index(name) for name in classes) or None)


def identify_prior(prior: Prior) -> dict[str, object]:
    """Return what identifies the conditions that a prior draws."""
    names = [prior.class_names[number] for number in prior.classes or ()]
    return {"prior": fingerprint_tensors(prior.flow.state_dict()), **({"classes": names} if names else {})}


def file_name(text: str) -> str:
    """Return a text as a part of a file's name: what is neither a letter nor a digit becomes -."""
    return "".join(letter if letter.isalnum() else "-" for letter in text)
