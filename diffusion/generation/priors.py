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
        tokens, labels = self.prior.draw([mix_seed(mix_seed(self.seed, PRIOR), i)])
        name = "prior" if labels[0] is None else file_name(self.prior.class_names[labels[0]])
        return NamedCondition(name, Condition(tokens))

    def has_pixels(self, i: int) -> bool:
        """Tell whether condition `i` carries its tissue, which none does."""
        return False


def open_prior(
    path: Path, classes: Sequence[str], tokens: int, width: int, device: torch.device | str = "cpu"
) -> Prior:
    """Load a prior of embeddings of so many tokens and values. Raises MissingError, and InputError for another flow or class."""
    flow = load_flow(path).to(device)
    config = flow.config
    if not config.from_noise:
        raise InputError(
            f"{path} translates embeddings: expected a prior, which begins at noise; such a flow goes with --flow"
        )
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
