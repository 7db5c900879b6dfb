"""How samples are taken of a run's network: solver, steps, guidance, precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch

from diffusion.caching import NONE, CacheSchedule, read_schedule
from diffusion.condition import Condition
from diffusion.formats import CONSISTENCY_SOLVER, DEFAULT_SOLVER, DEFAULT_STEPS
from diffusion.guidance import Network
from diffusion.inpainting import KnownLatents
from diffusion.sampling import (
    OnStep,
    Start,
    check_guidance_interval,
    check_strength,
    count_started_steps,
    prepare_scheduler,
    sample_latents,
)
from diffusion.spacing import UNIFORM
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import torch_dtype
from diffusion.workdir import Run


@dataclass(frozen=True)
class Solver:
    """How to sample. guidance: None for that of the run's sample grids. precision: of the network, fp32, bf16 or fp16.

    steps, algorithm, spacing: None for those of the run, by `for_run`: 20 of dpm-solver, evenly in time, or those that a student was
    made for, which has guidance in every prediction.
    Of a ControlNet: control_scale, which residuals are multiplied by; control_interval, the noise levels that have control,
    None for all; control_in_null, whether guidance's null pass has it, too, which released ControlNets were not trained for.
    spacing: where the steps lie, as `diffusion.spacing` has it. block_cache: at which of the steps taken blocks are computed, a name or
    file as `diffusion.caching.read_schedule` takes it. start_strength: of images that begin at the latents of others, the
    share of the steps that are taken (`sampling.Start`). Raises InputError for steps that the algorithm cannot take or place so,
    guidance that is no finite number, an interval without noise levels, and an unknown precision.
    """

    steps: int | None = None
    guidance: float | None = None
    algorithm: str | None = None
    guidance_interval: tuple[float, float] | None = None
    precision: str = "fp32"
    control_scale: float = 1.0
    control_interval: tuple[float, float] | None = None
    control_in_null: bool = False
    start_strength: float = 1.0
    spacing: str | None = None
    block_cache: str = NONE

    def __post_init__(self):
        torch_dtype(self.precision)
        known = self.guidance is None or (isinstance(self.guidance, Real) and math.isfinite(self.guidance))
        if not known:
            raise InputError(f"guidance {self.guidance}: expected a finite number; 1 is none")
        steps = DEFAULT_STEPS if self.steps is None else self.steps
        prepare_scheduler(self.algorithm or DEFAULT_SOLVER, steps, spacing=self.spacing or UNIFORM)
        check_guidance_interval(self.guidance_interval)
        check_guidance_interval(self.control_interval, "control interval")
        check_strength(self.start_strength)
        if self.steps is not None:
            _ = self._cache_schedule
        if not math.isfinite(self.control_scale):
            raise InputError(f"control scale {self.control_scale}: expected a finite number; 0 is no control")

    def for_run(self, run: Run) -> Solver:
        """Return the solver with steps and algorithm of a run, where it names none.

        Raises InputError for what a student was not made for, and for a spacing or block cache that does not go with the steps.
        """
        student = run.student
        if student is None:
            if self.algorithm == CONSISTENCY_SOLVER:
                raise InputError(
                    f"{self.algorithm} is the solver of students of latent consistency, and the network is none"
                )
            own = dict(algorithm=self.algorithm or DEFAULT_SOLVER, spacing=self.spacing or UNIFORM)
            return replace(self, steps=self.steps or DEFAULT_STEPS, **own)
        steps = self.steps or student.usual_steps
        student.check_steps(steps)
        student.check_guidance(self.guidance, self.guidance_interval)
        student.check_solver(self.algorithm)
        if self.spacing not in (None, student.spacing):
            raise InputError(
                f"spacing {self.spacing}: the network is a student, whose steps lie where it learned them; leave it out"
            )
        if self.block_cache != NONE:
            raise InputError(
                f"block cache {self.block_cache}: the network is a student, whose few steps leave nothing to reuse; leave it out"
            )
        student.check_autoguidance(run.weak)
        own = dict(algorithm=student.solver, spacing=student.spacing, guidance_interval=student.guidance_interval)
        return replace(self, steps=steps, **own)

    @property
    def sets_control(self) -> bool:
        """Tell whether settings of a control are other than usual."""
        return self.control_scale != 1 or self.control_interval is not None or self.control_in_null

    @property
    def block_cache_record(self) -> dict[str, object]:
        """Return what identifies the steps whose blocks are computed; nothing where all are."""
        schedule = self._cache_schedule
        return {} if schedule is None else {"block_cache": schedule.to_dict()}

    def check_control(self, run: Run, is_given: bool) -> None:
        """Raise InputError for a run whose ControlNet is given nothing to read, unless it counts nothing."""
        if run.controlnet is not None and not is_given and self.control_scale:
            raise InputError(
                "the ControlNet has nothing to read: name masks or images with --control, or take --control-scale 0 to sample "
                "without it"
            )

    def strength(self, run: Run) -> float:
        """Return the guidance that a run is sampled with; of a student, which has it in every prediction, 1."""
        if run.student is not None:
            return 1.0
        return run.config.sample_grid.guidance if self.guidance is None else self.guidance

    @property
    def taken_steps(self) -> int:
        """Return the steps, of a solver that names them or is for a run."""
        return DEFAULT_STEPS if self.steps is None else self.steps

    @property
    def _cache_schedule(self) -> CacheSchedule | None:
        return read_schedule(self.block_cache, count_started_steps(self.start_strength, self.taken_steps))

    def predictor(self, run: Run) -> Network:
        """Return what predicts in one sampling of a run's network."""
        own = self.for_run(run)
        times = prepare_scheduler(str(own.algorithm), own.taken_steps, spacing=str(own.spacing)).timesteps.tolist()
        return run.predictor(own.control_interval, own._cache_schedule, times)

    def weak_predictor(self, run: Run) -> Network | None:
        """Return what guides in one sampling instead of the null condition; None: nothing else."""
        return run.weak_predictor(self.control_interval, self._cache_schedule)

    def latents(
        self,
        run: Run,
        noise: torch.Tensor,
        condition: torch.Tensor | Condition,
        generators: Sequence[torch.Generator],
        network: Network | None = None,
        on_step: OnStep | None = None,
        start: torch.Tensor | None = None,
        weak: Network | None = None,
        known: KnownLatents | None = None,
    ) -> torch.Tensor:
        """Sample network latents of the noise's shape (B, C, H, W), with one generator an image.

        condition: tokens (B, L, D) or a Condition. network, weak: what predicts, and what guides it instead of the null condition,
        where these are not the run's own. start: latents to begin at, with noise on them by `start_strength`. known: latents
        that are kept in a part of the picture.
        Raises InputError when they are not finite, and as `check_control` does.
        """
        own = self.for_run(run)
        self.check_control(run, isinstance(condition, Condition) and condition.control is not None)
        device, dtype = run.device, torch_dtype(self.precision)
        condition, null_condition = condition.to(device), run.model.null_condition
        if isinstance(condition, Condition) and condition.weight is not None:
            condition = replace(condition, weight=self.control_scale * condition.weight)
            if self.control_in_null:
                null_condition = condition.null(run.model, keep_control=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            latents = sample_latents(
                network or self.predictor(run),
                noise.to(device),
                condition,
                null_condition,
                steps=own.taken_steps,
                guidance=self.strength(run),
                algorithm=str(own.algorithm),
                generators=generators,
                prediction_type=run.config.prediction_type,
                guidance_interval=self.guidance_interval,
                on_step=on_step,
                start=None if start is None else Start(start, self.start_strength),
                spacing=str(own.spacing),
                weak=weak or self.weak_predictor(run),
                known=known,
            )
        if not torch.isfinite(latents).all():
            raise InputError(
                f"latents are not finite: {run.checkpoint} is spoilt, or guidance {self.strength(run)} too strong"
            )
        return latents
