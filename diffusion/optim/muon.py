"""Muon: momentum with orthogonalized updates for matrices, AdamW for all other parameters (Jordan et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffusion.utils.hardware import has_bf16


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates for weight matrices (Jordan et al. 2024), AdamW for everything else.

    Updates are orthogonalized, so that all directions of a matrix move equally fast; that helps short trainings. `lr` is the
    spectral norm of a matrix's update; AdamW takes a tenth of it. Convolutions count as matrices (out, in * h * w).
    torch.optim.Muon takes neither those nor the parameters that need AdamW. Sharded matrices are gathered for every step.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        vectors: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        groups = [
            {"params": matrices, "lr": lr, "matrices": True},
            {"params": vectors, "lr": lr / 10, "matrices": False},
        ]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - takes no closure
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            update = self._orthogonal if group["matrices"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    direction = update(parameter, parameter.grad, self.state[parameter], group)
                    parameter.sub_(direction, alpha=group["lr"])

    @staticmethod
    def _orthogonal(
        parameter: nn.Parameter, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]
    ) -> torch.Tensor:
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonalize(gradient.lerp(state["average"], group["momentum"]))  # Nesterov's momentum
        return update * max(1.0, parameter.shape[0] / parameter[0].numel()) ** 0.5

    @staticmethod
    def _adam(
        parameter: nn.Parameter, gradient: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]
    ) -> torch.Tensor:
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        states = zip(("mean", "square"), (gradient, gradient.square()), group["betas"], strict=True)
        mean, square = (
            state[name].lerp_(new, 1 - beta) / (1 - beta ** state["step"].item()) for name, new, beta in states
        )
        return mean / (square.sqrt() + group["eps"])


def orthogonalize(gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient (out, ...) as a matrix with all singular values near 1, by five Newton-Schulz iterations."""
    matrix = gradient.flatten(1).to(torch.bfloat16 if has_bf16(gradient.device) else torch.float32)
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    matrix = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = 3.4445 * matrix + (2.0315 * gram @ gram - 4.7750 * gram) @ matrix
    return (matrix.T if tall else matrix).reshape(gradient.shape).to(gradient.dtype)
