"""Whether weights are those of a network: names, shapes and types of their tensors, and what their file says of itself."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion.model.architecture import PREDICTION_TYPE
from diffusion.model.pixart import PixArt
from diffusion.model.pixart_config import PixArtConfig
from diffusion.model.trunk import Trunk
from diffusion.utils.errors import InputError
from diffusion.utils.state_dicts import check_types
from diffusion.utils.text import abbreviate

POSITIONS = ("pos_embed", "y_pos_embed")  # constants that follow from the architecture


def load_into(model: PixArt, weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Load weights strictly. Raises InputError naming the tensors that are missing, unknown, or of another shape."""
    check_fit(model.state_dict(), weights, source)
    model.load_state_dict(weights)


def add_positions(model: Trunk, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights with the positions of the network that they are for, where they have none."""
    own = model.state_dict()
    return {**weights, **{name: own[name] for name in POSITIONS if name in own and name not in weights}}


def check_fit(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Compare names, shapes and types of weights with a network's own. Raises InputError naming those that differ."""
    missing = sorted(own.keys() - weights.keys())
    unknown = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    complaints = [
        f"{what}: {abbreviate(names, 4)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if complaints:
        raise InputError(f"{source} is of another architecture than the network ({'; '.join(complaints)})")
    check_types(own, weights, source)


def check_metadata(
    metadata: Mapping[str, Any], model: PixArt, prediction_type: str, source: str | Path, ignore: Container[str] = ()
) -> None:
    """Compare what a file says of its network with the one it is for, except for the arguments to ignore.

    Tensors alone show neither the heads, nor where the positions came from, nor what is predicted: weights that say
    nothing predict noise, as the released ones. What one of both lacks, and arguments of training alone, are not
    compared. Raises InputError naming the first difference.
    """
    own = {**model.config.to_dict(), PREDICTION_TYPE: prediction_type}
    for name, value in {PREDICTION_TYPE: "epsilon", **metadata}.items():
        if name in ignore or name in PixArtConfig.TRAINING_ONLY or own.get(name, value) == value:
            continue
        if name == "mlp_ratio" and abs(model.config.hidden_size * value - model.config.mlp_width) < 0.5:
            continue  # the ratio that older versions read off the tensors
        raise InputError(
            f"{source} is of another architecture than the network ({name} {value} instead of {own[name]})"
        )
