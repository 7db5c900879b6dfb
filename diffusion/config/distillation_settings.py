"""The settings of distillation: those of denoising, which describe the network, and how a student learns from its teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from diffusion.config.settings import Config, check_that
from diffusion.utils.values import Count, Name, PositiveInt, Range, Section

# settings that the other method does not have
OF_METHOD = {"trajectory": ("teacher_steps", "jumps", "solver"), "consistency": ("skip",)}


@dataclass(frozen=True)
class DistillationSection(Section):
    """Which network is the teacher, and how its student learns to sample in a few steps."""

    PREFIX = "distillation."

    teacher: Name | None = None
    """Weights of the teacher, with which the student begins: a run's, released ones, or "nano"."""
    method: Literal["trajectory", "consistency"] = "trajectory"
    """trajectory: jumps along the teacher's path from noise to image. consistency: latent consistency (Luo et al. 2023)."""
    guidance: Annotated[float, Range(least=1, most=100)] = 1.5
    """Strength of the teacher's guidance, which the student has in every prediction; 1: none."""
    guidance_interval: tuple[float, float] | None = None
    """Lowest and highest noise level, std of noise over std of signal, at which the teacher is guided; none: all."""
    steps: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    """Numbers of steps that the student takes, rising; of trajectory, each divides the last."""
    spacing: Name = "uniform"
    """Where the student's steps lie, and the teacher's on the path: uniform, power:P or as diffusion/spacing.py has it."""
    teacher_steps: Count = 16
    """Of trajectory: steps of the teacher's solver, of which the last of steps is a divisor."""
    jumps: Count = 2
    """Of trajectory: jumps of each number of steps that one path trains, or as many as there are."""
    skip: Annotated[int, Range(least=1, most=500)] = 20
    """Of consistency: timesteps between the two latents whose ends are to agree."""
    solver: Name = "dpm-solver-3"
    """Of trajectory: the teacher's solver, one that adds no noise on its way."""

    def check(self) -> None:
        steps = self.steps
        rising = bool(steps) and list(steps) == sorted(set(steps))
        check_that(rising, f"distillation.steps {steps}: expected rising numbers of steps, such as (1, 2, 4, 8)")
        for name in OF_METHOD["consistency" if self.method == "trajectory" else "trajectory"]:
            value = getattr(self, name)
            check_that(
                value == getattr(DistillationSection, name),  # its default
                f"distillation.{name} {value} is of another method than {self.method}: leave it out",
            )
        if self.method != "trajectory":
            return
        odd = [number for number in steps if steps[-1] % number]
        check_that(
            not odd,
            f"distillation.steps {steps}: {odd[:1]} does not divide {steps[-1]}, and each is to divide the last",
        )
        check_that(
            self.teacher_steps % steps[-1] == 0,
            f"distillation.teacher_steps {self.teacher_steps}: expected a multiple of the student's {steps[-1]} steps",
        )


@dataclass(frozen=True)
class DistillationConfig(Config):
    """The keys of the task `distillation`: those of denoising, which describe teacher and student, and how the student learns.

    Sample grids and scores take the student's own steps, and no guidance but what it has learned. Without effect are
    timestep_sampling, min_snr_gamma, class_dropout_prob and ignore_keys. Raises InputError as Config does.
    """

    task: Name = "distillation"
    """Always "distillation"."""
    distillation: DistillationSection = field(default_factory=DistillationSection)
    """Teacher and method; `task = dict(type="distillation", teacher=...)` sets it, too."""

    @property
    def adapted(self) -> str | None:
        """Return the weights of the teacher, beside whose tensors an adapter is trained."""
        return self.distillation.teacher

    def check_teacher(self) -> None:
        """Raise InputError without a teacher, and for other weights to begin with beside an adapter of it; keys are also read one
        by one, without these.
        """
        check_that(
            self.lora.load_from is None,
            "lora.load_from with task distillation: a student begins as its teacher; an adapter of another look goes with --lora, when "
            "it is sampled",
        )
        check_that(
            not (self.lora.rank and self.load_from),
            f"load_from {self.load_from} with lora.rank: the adapter of a student begins beside its teacher; leave load_from out",
        )
        check_that(
            self.distillation.teacher is not None,
            "distillation.teacher None: expected the weights of the network to distil",
        )
