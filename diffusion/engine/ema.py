"""Exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


class EMA:
    """Averages every floating-point parameter of a network and copies its buffers: all that its state dict holds.

    The null condition is a buffer: an average without it would guide against another network's null.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average += (1 - decay) * (weights - average); in one fused call for all parameters."""
        current = model.state_dict()
        if current.keys() != self.tensors.keys():
            raise RuntimeError(
                "the network's tensors are not those of its average; it was changed after the average was made"
            )
        averaged = [name for name, _ in model.named_parameters()]
        torch._foreach_lerp_(
            [self.tensors[name] for name in averaged], [current[name] for name in averaged], 1 - self.decay
        )
        for name in current.keys() - set(averaged):
            self.tensors[name].copy_(current[name])

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the averages of a checkpoint, with the same names and shapes."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
