"""Classifier-free guidance (Ho & Salimans 2022), in the project's one convention: null + w * (conditional - null).

w = 1 is no guidance. Code that writes (w + 1) * conditional - w * null means our w + 1.
Autoguidance (Karras et al. 2024, Guiding a diffusion model with a bad version of itself) has a weaker network's prediction for the
same condition in the place of `null`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diffusion.condition import Condition, as_condition

# (x, timestep, condition) -> prediction. A network is called with what its caller has: plain tokens, or a Condition.
Network = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]


def guided_prediction(
    model: Network,
    x: torch.Tensor,
    timestep: torch.Tensor,
    y: torch.Tensor | Condition,
    null_y: torch.Tensor | Condition | None,
    guidance: float | torch.Tensor,
    weak: Network | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the guided noise (or velocity), over all of its channels, and the conditional pass's variance values.

    x (B, C, H, W), timestep (B,), y (B, L, D) or a Condition -> (B, C, H, W) twice; None for the variance of a network
    without one. guidance: one strength, or one for each sample (B, 1, 1, 1). null_y: tokens (L, D) or (B, L, D), with which
    the null pass gets no control, as ControlNets are released; or a Condition of B samples, which may keep it. At guidance 1
    the null pass is not run and it may be None.
    weak: a network whose prediction for the same condition is taken instead of the null pass; null_y is then not needed.
    Raises ValueError when guidance asks for a null condition that is not given.
    """
    channels = x.shape[1]
    if not isinstance(guidance, torch.Tensor) and guidance == 1:
        return _split(model(x, timestep, y), channels)
    if weak is not None:
        noise, variance = _split(model(x, timestep, y), channels)
        return torch.lerp(weak(x, timestep, y)[:, :channels], noise, guidance), variance
    if null_y is None:
        raise ValueError(f"guidance {guidance} needs the null condition; only guidance 1 does without")
    condition = as_condition(y)
    null_condition = null_y if isinstance(null_y, Condition) else condition.replace_tokens(null_y)
    both = Condition.cat([condition, null_condition])
    output = model(
        torch.cat([x, x]), torch.cat([timestep, timestep]), both if isinstance(y, Condition) else both.tokens
    )
    conditional, null = output.chunk(2)
    noise, variance = _split(conditional, channels)
    null_noise = null[:, :channels]
    return torch.lerp(null_noise, noise, guidance), variance


def _split(output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Split an output into the prediction and the variance values, if it has some."""
    return output[:, :channels], output[:, channels:] if output.shape[1] > channels else None
