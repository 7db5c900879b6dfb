"""Control: a network with a ControlNet beside it, called as the network alone is; both are callables here.

Letters: B batch, C latent channels, H W sides of the latents, N image tokens, L condition tokens, D their width, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F

from diffusion.condition import Condition, HasNullCondition, as_condition
from diffusion.formats import LATENT_FACTOR
from diffusion.schedule import linear_schedule


def maps_to_control(maps: torch.Tensor) -> torch.Tensor:
    """Return maps (..., K, H, W) of an image's pixels as a control (..., 64 K, H / 8, W / 8).

    The pixels of a latent's cell become its channels, so that nothing is lost; maps count from 0 to 1.
    """
    return F.pixel_unshuffle(maps, LATENT_FACTOR)


class ControlledNetwork:
    """A network that a ControlNet steers, for the samples whose condition has a control; others are the network's own.

    base: a network that takes residuals, as PixArt does. controlnet: as it is, or as several processes share it. interval: the
    lowest and highest noise level, std of noise over std of signal, at which there is control; None: all. everywhere: all samples have a
    control that counts once, as in training without guidance, so that nothing has to be looked up, for which a GPU would wait.
    skip: tells of latents and timesteps whether the base computes no blocks for them, so that it needs no residuals.
    """

    def __init__(
        self,
        base: Callable[..., torch.Tensor],
        controlnet: Callable[..., list[torch.Tensor]],
        interval: tuple[float, float] | None = None,
        everywhere: bool = False,
        skip: Callable[[torch.Tensor, torch.Tensor], bool] | None = None,
    ):
        self.skip = skip
        self.everywhere = everywhere
        self.base, self.controlnet = base, controlnet
        self.low, self.high = interval or (0.0, math.inf)

    @property
    def null_condition(self) -> torch.Tensor:
        """Return the network's null condition (L, D)."""
        return cast(HasNullCondition, self.base).null_condition

    def __call__(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor | Condition,
        dropped: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict as PixArt does. The residuals of a sample count as much as its control's weight, and of weight 0 not at all:
        its ControlNet is not run, and its prediction is the network's own, to the bit.
        """
        condition = as_condition(y)
        skipped = self.skip is not None and self.skip(x, timestep)
        residuals = None if skipped else self._residuals(x, timestep, condition, dropped)
        return self.base(x, timestep, condition.tokens, dropped, residuals)

    def _residuals(
        self, x: torch.Tensor, timestep: torch.Tensor, condition: Condition, dropped: torch.Tensor | None
    ) -> Sequence[torch.Tensor] | None:
        """Return what is added behind each block, (B, N, W): zeros for samples without control; None where none has one."""
        if condition.control is None or condition.weight is None:
            return None
        if self.everywhere:
            return self.controlnet(x, timestep, condition.tokens, condition.control, dropped)
        weight = condition.weight
        if (self.low, self.high) != (0.0, math.inf):
            level = linear_schedule().noise_levels.float().to(x.device)[timestep]
            weight = torch.where((level >= self.low) & (level <= self.high), weight, 0.0)
        rows = weight.nonzero()[:, 0]
        if not len(rows):
            return None
        parts: tuple[torch.Tensor | None, ...] = (x, timestep, condition.tokens, condition.control, dropped)
        if len(rows) < len(x):  # of a guided batch, the half with the null condition has none
            parts = tuple(part if part is None else part[rows] for part in parts)
        scale = weight[rows][:, None, None]
        found = [residual * scale.to(residual.dtype) for residual in self.controlnet(*parts)]
        if len(rows) == len(x):
            return found
        return [each.new_zeros(len(x), *each.shape[1:]).index_copy(0, rows, each) for each in found]
