"""Trajectory distillation: a student learns jumps along the path that its teacher's solver takes from noise to image.

The teacher samples with guidance from the noise of a training sample. Between two of the latents that it passes, x_t and x_s, there
is one prediction with which a single step of DDIM leads from the first to the second; that is what the student learns to predict at
t, told s (progressive distillation, Salimans & Ho 2022, with the target time of Consistency Trajectory Models, Kim et al. 2024). One path
serves the jumps of all numbers of steps.
Letters: B batch, C latent channels, H W sides of the latents, L condition tokens, D their width, J jumps of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from diffusion.condition import Condition
from diffusion.config.distillation_settings import DistillationSection
from diffusion.guidance import Network
from diffusion.sampling import SPACED, denoise, prepare_scheduler
from diffusion.schedule import linear_schedule, prediction_of_step
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import to_device

# (x, timestep, target timestep, condition) -> prediction of x (B, C, H, W), or more channels
JumpingStudent = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Condition], torch.Tensor]
_SCHEDULE = linear_schedule()
# An error of the noise is alpha_bar times that of the velocity (squared, of the same latents), hardly anything where there is hardly
# any signal. Its weight makes up for that, up to this factor.
MOST_WEIGHT = 25.0


class Jump(NamedTuple):
    """A jump between two of a path's latents, by their numbers: 0 is the noise."""

    start: int
    end: int


@dataclass(frozen=True)
class TrajectoryLosses:
    """Squared errors of a student's jumps along its teacher's path. Raises InputError for a solver that draws noise on its way."""

    settings: DistillationSection
    prediction_type: str

    def __post_init__(self):
        if self.settings.solver not in SPACED:
            raise InputError(
                f"distillation.solver {self.settings.solver}: its path depends on more than the noise that it begins with; expected "
                f"{', '.join(SPACED)}"
            )

    @cached_property
    def timesteps(self) -> list[int]:
        """Return the timesteps of the teacher's steps, falling."""
        settings = self.settings
        return prepare_scheduler(settings.solver, settings.teacher_steps, spacing=settings.spacing).timesteps.tolist()

    def choose_jumps(self, uniform: torch.Tensor) -> list[Jump]:
        """Choose a sample's jumps by uniform numbers (sum of `steps`,) in [0, 1): `jumps` of each number of steps, none twice."""
        chosen, first = [], 0
        for steps in self.settings.steps:
            order = uniform[first : first + steps].argsort().tolist()
            length = self.settings.teacher_steps // steps
            chosen += [Jump(i * length, (i + 1) * length) for i in order[: self.settings.jumps]]
            first += steps
        return chosen

    @torch.no_grad()
    def path(
        self, teacher: Network, noise: torch.Tensor, condition: Condition, null_tokens: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the latents (B, C, H, W) that a guided sampling passes, from the noise to the end."""
        settings, passed = self.settings, [noise]
        scheduler = prepare_scheduler(settings.solver, settings.teacher_steps, self.prediction_type, settings.spacing)

        def keep(i: int, t: torch.Tensor, x: torch.Tensor) -> None:
            passed.append(x)

        guidance = (settings.guidance, settings.guidance_interval)
        denoise(teacher, scheduler, noise, condition.tokens, null_tokens, *guidance, on_step=keep)
        return passed

    def losses(
        self,
        student: JumpingStudent,
        path: Sequence[torch.Tensor],
        condition: Condition,
        jumps: Sequence[Sequence[Jump]],
    ) -> torch.Tensor:
        """Return the mean squared error (B,) of what the student predicts for jumps of each sample, as many of all.

        The error is of what the network predicts: of velocities as it is; of noise weighted by 1 / alpha_bar, at most 25 times.
        """
        ends = [*self.timesteps, 0]
        rows = [(i, jump) for i, own in enumerate(jumps) for jump in own]
        x_t, x_s = (torch.stack([path[getattr(jump, end)][i] for i, jump in rows]) for end in ("start", "end"))
        timestep, target = (
            to_device(torch.tensor([ends[getattr(jump, end)] for _, jump in rows]), x_t.device)
            for end in ("start", "end")
        )
        wanted = prediction_of_step(_SCHEDULE, x_s, x_t, timestep, target, self.prediction_type)
        each = to_device(torch.tensor([i for i, _ in rows]), x_t.device)
        predicted = student(x_t, timestep, target, condition[each])[:, : x_t.shape[1]].float()
        errors = ((predicted - wanted) ** 2).flatten(1).mean(1)
        if self.prediction_type == "epsilon":
            signal = to_device(_SCHEDULE.alpha_bar.float(), x_t.device)[timestep]
            errors = errors * (1 / signal).clamp(max=MOST_WEIGHT)
        return errors.unflatten(0, (len(jumps), -1)).mean(1)
