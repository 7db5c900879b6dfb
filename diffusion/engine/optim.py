"""Optimizers by name, and the learning rate over optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.optim.lr_scheduler import LambdaLR

from diffusion.config import Config, OptimizerConfig
from diffusion.errors import InputError

REFERENCE_BATCH = 256  # the global batch at which auto_lr leaves the learning rate alone


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimizerConfig, lr: float
) -> torch.optim.Optimizer:
    """AdamW or CAME (Luo et al. 2023). Raises InputError for another name, or betas and eps of the wrong number."""
    arguments = {name: value for name in ("betas", "eps") if (value := getattr(config, name)) is not None}
    if config.type == "AdamW":
        _expect(
            len(arguments.get("betas", (0, 0))) == 2 and isinstance(arguments.get("eps", 0.0), float),
            config,
            "two betas, one eps",
        )
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay, **arguments)
    if config.type in ("CAME", "CAMEWrapper"):  # the second is the original project's name for it
        from came_pytorch import CAME

        pairs = isinstance(arguments.get("eps", ()), tuple) and len(arguments.get("betas", (0, 0, 0))) == 3
        _expect(pairs, config, "three betas, two eps")
        return CAME(parameters, lr=lr, weight_decay=config.weight_decay, **arguments)
    raise InputError(f"no optimizer {config.type!r}; known are AdamW, CAME")


def learning_rate(config: Config, global_batch: int) -> float:
    """The peak learning rate; with auto_lr it follows the global batch by the rule named there."""
    if config.auto_lr is None:
        return config.optimizer.lr
    growth = {"sqrt": math.sqrt, "linear": float}
    rule = config.auto_lr.get("rule")
    if rule not in growth:
        raise InputError(f"auto_lr {config.auto_lr}: expected dict(rule='sqrt') or dict(rule='linear')")
    return config.optimizer.lr * growth[rule](global_batch / REFERENCE_BATCH)


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


def _expect(holds: bool, config: OptimizerConfig, wanted: str) -> None:
    if not holds:
        raise InputError(f"optimizer {config.type} with betas {config.betas}, eps {config.eps}: expected {wanted}")
