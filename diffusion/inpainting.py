"""Inpainting without training: a part of the latents is sampled, and the rest is put back at every step.

Letters: B images, C channels, h w cells of the latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion.formats import LATENT_FACTOR
from diffusion.schedule import linear_schedule


@dataclass(frozen=True)
class KnownLatents:
    """Latents (B, C, h, w) that are kept where `change` (B, 1, h, w) is 0, and sampled where it is 1.

    The known part has the noise of the level that sampling has reached (Song et al. 2021, "Score-Based Generative Modeling through
    SDEs", section 5; Lugmayr et al. 2022, RePaint, equation 8), always the same noise, so that an image follows from its seed.
    Raises ValueError for a `change` of other images or cells.
    """

    latents: torch.Tensor
    change: torch.Tensor

    def __post_init__(self):
        expected = (len(self.latents), 1, *self.latents.shape[2:])
        if tuple(self.change.shape) != expected:
            raise ValueError(f"change of shape {tuple(self.change.shape)}: expected {expected}, as the latents")

    def put_back(self, x: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return sampled latents with the known ones, which have the same noise level, where they are kept."""
        return torch.lerp(known.to(x), x, self.change.to(x))


def change_of_cells(mask: torch.Tensor) -> torch.Tensor:
    """Return which cells change, float32 (B, 1, h, w) of 0 and 1, of a mask of pixels (B, H, W) that is true where the picture changes.

    A cell with any such pixel changes. H and W are multiples of 8.
    """
    return F.max_pool2d(mask[:, None].float(), LATENT_FACTOR)


def clean_between(
    first: torch.Tensor, first_timestep: torch.Tensor, second: torch.Tensor, second_timestep: torch.Tensor
) -> torch.Tensor:
    """Return the latents without noise (B, C, h, w) that latents at two timesteps in a row agree on.

    With x = a x0 + b e at both, x0 follows from the two: exactly for a step of DDIM, nearly for other solvers.
    """
    alpha_bar = linear_schedule().alpha_bar
    (a_1, b_1), (a_2, b_2) = (
        (float(alpha_bar[int(t)].sqrt()), float((1 - alpha_bar[int(t)]).sqrt()))
        for t in (first_timestep, second_timestep)
    )
    return (b_1 * second - b_2 * first) / (b_1 * a_2 - b_2 * a_1)
