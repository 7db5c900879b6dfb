"""Optimizers by name, and the learning rate over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from diffusion.config.settings import Config, OptimizerConfig
from diffusion.optim.came import CAME
from diffusion.utils.hardware import has_bf16

REFERENCE_BATCH = 256  # the global batch at which auto_lr leaves the learning rate alone


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """Return AdamW, CAME (Luo et al. 2023) or Muon; the config has checked the name, and the numbers of betas and eps."""
    arguments = {name: value for name in ("betas", "eps") if (value := getattr(config, name)) is not None}
    arguments |= {"lr": lr, "weight_decay": config.weight_decay}
    if config.type == "AdamW":
        return torch.optim.AdamW(model.parameters(), fused=True, **arguments)  # one pass over memory, not a dozen
    if config.type == "Muon":
        hidden = [module for part in (model.blocks, model.y_embedder) for module in part.modules()]
        matrices = [module.weight for module in hidden if isinstance(module, nn.Linear)]
        return Muon(matrices, others(model, matrices), **arguments)
    return CAME(model.parameters(), **arguments)


def others(model: nn.Module, matrices: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """A network's parameters but for these."""
    chosen = {id(parameter) for parameter in matrices}
    return [parameter for parameter in model.parameters() if id(parameter) not in chosen]


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates for weight matrices (Jordan et al. 2024), AdamW for everything else.

    All directions of a matrix learn at one rate, which a small network with little time thanks for. `lr` is the
    spectral norm of a matrix's update; AdamW takes a tenth of it. Convolutions count as matrices (out, in * h * w).
    torch.optim.Muon takes neither those nor the parameters that need AdamW. Sharded matrices are gathered anew for every step.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        groups = [
            {"params": matrices, "lr": lr, "matrices": True},
            {"params": others, "lr": lr / 10, "matrices": False},
        ]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            update = self._orthogonal if group["matrices"] else self._adam
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update(parameter, self.state[parameter], group), alpha=group["lr"])

    @staticmethod
    def _orthogonal(parameter: nn.Parameter, state: dict[str, torch.Tensor], group: dict[str, Any]) -> torch.Tensor:
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(parameter.grad, 1 - group["momentum"])
        update = orthogonalize(parameter.grad.lerp(state["average"], group["momentum"]))  # Nesterov's momentum
        return update * max(1.0, parameter.shape[0] / parameter[0].numel()) ** 0.5

    @staticmethod
    def _adam(parameter: nn.Parameter, state: dict[str, torch.Tensor], group: dict[str, Any]) -> torch.Tensor:
        if not state:
            state.update(step=torch.zeros(()), mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        states = zip(("mean", "square"), (parameter.grad, parameter.grad.square()), group["betas"], strict=True)
        mean, square = (
            state[name].lerp_(new, 1 - beta) / (1 - beta ** state["step"].item()) for name, new, beta in states
        )
        return mean / (square.sqrt() + group["eps"])


def orthogonalize(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient (out, ...) as a matrix with all singular values near 1, by five Newton-Schulz iterations."""
    matrix = gradient.flatten(1).to(torch.bfloat16 if has_bf16(gradient.device) else torch.float32)
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    matrix = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = 3.4445 * matrix + (2.0315 * gram @ gram - 4.7750 * gram) @ matrix
    return (matrix.T if tall else matrix).reshape(gradient.shape).to(gradient.dtype)


def learning_rate(config: Config, global_batch: int) -> float:
    """Return the peak learning rate; with auto_lr it follows the global batch by the rule named there."""
    if config.auto_lr is None:
        return config.optimizer.lr
    growth = {"sqrt": math.sqrt, "linear": float}[config.auto_lr["rule"]]
    return config.optimizer.lr * growth(global_batch / REFERENCE_BATCH)


def build_lr_schedule(optimizer: torch.optim.Optimizer, config: Config, total_steps: int) -> LambdaLR:
    """Linear warm-up, then constant or a cosine to zero; counted in optimizer steps, whatever the number of processes."""
    warmup = config.lr_schedule_args.num_warmup_steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.lr_schedule == "constant":
            return 1.0
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)
