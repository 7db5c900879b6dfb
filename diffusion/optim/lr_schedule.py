"""The learning rate: its peak by the global batch, and its course over optimizer steps."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

REFERENCE_BATCH = 256  # the global batch at which auto_lr leaves the learning rate alone


def scale_learning_rate(lr: float, rule: str | None, global_batch: int) -> float:
    """Return the peak learning rate: with a rule, `sqrt` or `linear`, it grows with the global batch."""
    if rule is None:
        return lr
    growth = {"sqrt": math.sqrt, "linear": float}[rule]
    return lr * growth(global_batch / REFERENCE_BATCH)


def build_lr_schedule(optimizer: torch.optim.Optimizer, kind: str, warmup: int, total_steps: int) -> LambdaLR:
    """Return a linear warm-up, then `constant` or a `cosine` to zero; counted in optimizer steps, whatever the number of processes."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if kind == "constant":
            return 1.0
        progress = (step - warmup) / max(1, total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)
