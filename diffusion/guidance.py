"""Classifier-free guidance (Ho & Salimans 2022), in the project's one convention: null + w * (conditional - null).

w = 1 is no guidance. Code that writes (w + 1) * conditional - w * null means our w + 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Network = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def guided_prediction(
    model: Network,
    x: torch.Tensor,
    timestep: torch.Tensor,
    y: torch.Tensor,
    null_y: torch.Tensor | None,
    guidance: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Guided noise (or velocity), over all of its channels, and the conditional pass's variance values.

    x (B, C, H, W), timestep (B,), y (B, L, D), null_y (L, D) or (B, L, D) -> (B, C, H, W) twice; None for the variance
    of a network without one. At guidance 1 the null pass is not run and null_y may be None.
    Raises ValueError when guidance asks for a null condition that is not given.
    """
    channels = x.shape[1]
    if guidance == 1:
        return _split(model(x, timestep, y), channels)
    if null_y is None:
        raise ValueError(f"guidance {guidance} needs the null condition; only guidance 1 does without")
    both = model(torch.cat([x, x]), torch.cat([timestep, timestep]), torch.cat([y, null_y.to(y).expand_as(y)]))
    conditional, null = both.chunk(2)
    noise, variance = _split(conditional, channels)
    null_noise = null[:, :channels]
    return torch.lerp(null_noise, noise, guidance), variance


def _split(output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    return output[:, :channels], output[:, channels:] if output.shape[1] > channels else None
