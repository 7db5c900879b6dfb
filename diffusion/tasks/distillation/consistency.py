"""Latent consistency distillation (Luo et al. 2023): a student predicts the end of its teacher's path from any point on it.

From noisy latents of the training set the teacher takes one guided step of DDIM, `skip` timesteps down; what the student makes of
the latents before and after is to be the same (equation 14, with the guidance folded in at one strength). The student that
is aimed at is the one that is trained, without a gradient, and the distance is the pseudo-Huber one (Song & Dhariwal 2023,
Improved techniques for training consistency models, sections 3.2 and 3.3).
Letters: B batch, C latent channels, H W sides of the latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffusion.condition import Condition
from diffusion.config.distillation_settings import DistillationSection
from diffusion.guidance import Network, guided_prediction
from diffusion.sampling import check_guidance_interval
from diffusion.schedule import TIMESTEPS, add_noise, clean_of_prediction, ddim_step, linear_schedule
from diffusion.utils.hardware import to_device

_SCHEDULE = linear_schedule()
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of the boundary condition, as LCMScheduler has it
HUBER = 0.001


@dataclass(frozen=True)
class ConsistencyLosses:
    """Distances between what a student makes of latents, and of those one step of its teacher further."""

    settings: DistillationSection
    prediction_type: str

    def choose_timesteps(self, uniform: torch.Tensor) -> torch.Tensor:
        """Choose timesteps (B,) from `skip` to 999 by uniform numbers (B,) in [0, 1)."""
        skip = self.settings.skip
        return skip + (uniform * (TIMESTEPS - skip)).long()

    def strengths(self, timestep: torch.Tensor) -> torch.Tensor:
        """Return the guidance strength (B, 1, 1, 1) at timesteps (B,): 1 outside of the interval."""
        low, high = check_guidance_interval(self.settings.guidance_interval)
        levels = to_device(_SCHEDULE.noise_levels, timestep.device)[timestep]
        guided = (low <= levels) & (levels <= high)
        return torch.where(guided, self.settings.guidance, 1.0).float()[:, None, None, None]

    def losses(
        self,
        student: Network,
        teacher: Network,
        clean: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor,
        condition: Condition,
        null_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """Return the mean pseudo-Huber distance (B,) for clean network latents (B, C, H, W), noise, and timesteps (B,)."""
        x_t = add_noise(_SCHEDULE, clean, noise, timestep)
        target = timestep - self.settings.skip
        with torch.no_grad():
            strength = self.strengths(timestep)
            guided, _ = guided_prediction(teacher, x_t, timestep, condition.tokens, null_tokens, strength)
            x_s = ddim_step(_SCHEDULE, guided.float(), x_t, timestep, target, self.prediction_type)
            wanted = self.end(student, x_s, target, condition)
        error = self.end(student, x_t, timestep, condition) - wanted
        return ((error**2 + HUBER**2).sqrt() - HUBER).flatten(1).mean(1)

    def end(self, student: Network, x: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Return where the student says that the path ends, (B, C, H, W): at timestep 0 the latents themselves."""
        predicted = student(x, timestep, condition.tokens)[:, : x.shape[1]].float()
        scaled = (TIMESTEP_SCALING * timestep.float())[:, None, None, None]
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
        return skip * x + out * clean_of_prediction(_SCHEDULE, predicted, x, timestep, self.prediction_type)
