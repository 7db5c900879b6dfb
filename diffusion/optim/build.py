"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from diffusion.config.settings import OptimizerConfig
from diffusion.optim.came import CAME
from diffusion.optim.muon import Muon


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, lr: float, matrices: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return AdamW, CAME (Luo et al. 2023) or Muon of a network's trained parameters.

    matrices: the parameters whose updates Muon orthogonalizes. The config has checked the name, and the numbers of betas
    and eps.
    """
    arguments: dict[str, Any] = {
        name: value for name in ("betas", "eps") if (value := getattr(config, name)) is not None
    }
    arguments |= {"lr": lr, "weight_decay": config.weight_decay}
    groups = [
        [parameter for parameter in group if parameter.requires_grad]
        for group in group_parameters(model, config.type, matrices)
    ]
    if config.type == "Muon":
        return Muon(groups[0], groups[1], **arguments)
    if config.type == "AdamW":
        return torch.optim.AdamW(groups[0], fused=True, **arguments)  # one pass over memory, not a dozen
    if config.type in ("CAME", "CAMEWrapper"):
        return CAME(groups[0], **arguments)
    raise ValueError(f"no optimizer {config.type!r}; build_optimizer must build each name that the config knows")


def group_parameters(model: nn.Module, optimizer: str, matrices: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the optimizer's groups of a network's parameters, the frozen ones among them."""
    if optimizer != "Muon":
        return [list(model.parameters())]
    chosen = {id(parameter) for parameter in matrices}
    return [list(matrices), [parameter for parameter in model.parameters() if id(parameter) not in chosen]]
