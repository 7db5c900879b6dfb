"""From noise to latents: the schedulers of diffusers on the project's own betas, one signature for every algorithm."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from diffusion.condition import Condition
from diffusion.formats import DEFAULT_SOLVER
from diffusion.guidance import Network, guided_prediction
from diffusion.schedule import BETA_END, BETA_START, TIMESTEPS, linear_schedule
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import to_device
from diffusion.utils.seeds import mix_seed

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

OnStep = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]


def _dpm_solver(order: int) -> Callable[..., SchedulerMixin]:
    def build(**betas) -> SchedulerMixin:
        from diffusers import DPMSolverMultistepScheduler

        # these choices reproduce the original continuous-time solver (order 2, time_uniform) to 5e-4
        return DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            solver_order=order,
            final_sigmas_type="sigma_min",
            euler_at_final=True,
            **betas,
        )

    return build


def _ancestral(**betas) -> SchedulerMixin:
    from diffusers import DDPMScheduler

    return DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="linspace", **betas)


def _sa_solver(**betas) -> SchedulerMixin:
    from diffusers import SASolverScheduler

    return SASolverScheduler(algorithm_type="data_prediction", predictor_order=2, corrector_order=2, **betas)


ALGORITHMS: dict[str, Callable[..., SchedulerMixin]] = {
    "dpm-solver": _dpm_solver(order=2),  # DPM-Solver++ 2M (Lu et al. 2022)
    "ddim": _dpm_solver(
        order=1
    ),  # its first order is DDIM (Lu et al. 2022, section 4.1), exact for any number of steps
    "iddpm": _ancestral,  # ancestral sampling with the learned variance (Nichol & Dhariwal 2021)
    "sa-solver": _sa_solver,  # stochastic Adams (Xue et al. 2023)
}


def build_scheduler(algorithm: str, prediction_type: str = "epsilon") -> SchedulerMixin:
    """A diffusers scheduler on the project's betas. Raises InputError for an unknown algorithm."""
    if algorithm not in ALGORITHMS:
        raise InputError(f"no sampling algorithm {algorithm!r}; known are {', '.join(ALGORITHMS)}")
    betas = {"beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "linear"}
    return ALGORITHMS[algorithm](num_train_timesteps=TIMESTEPS, prediction_type=prediction_type, **betas)


def prepare_scheduler(algorithm: str, steps: int, prediction_type: str = "epsilon") -> SchedulerMixin:
    """Such a scheduler set to `steps` steps. Raises InputError for an unknown algorithm or a step count that is none."""
    scheduler = build_scheduler(algorithm, prediction_type)
    if not 1 <= steps <= TIMESTEPS:
        raise InputError(f"{steps} sampling steps: expected 1 to {TIMESTEPS}")
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    if times[0] < TIMESTEPS // 2 or len(times.unique()) < len(times):
        raise InputError(
            f"{algorithm} cannot take {steps} steps: its timesteps would begin late or repeat; take another number"
        )
    return scheduler


@torch.no_grad()
def sample_latents(
    model: Network,
    noise: torch.Tensor,
    y: torch.Tensor | Condition,
    null_y: torch.Tensor | Condition | None = None,
    steps: int = 20,
    guidance: float = 2.0,
    algorithm: str = DEFAULT_SOLVER,
    generators: Sequence[torch.Generator] | None = None,
    prediction_type: str = "epsilon",
    guidance_interval: tuple[float, float] | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Return network latents (B, C, H, W) from noise of that shape and conditions y: tokens (B, L, D) or a Condition.

    The model is called with what y is: plain tokens, or a Condition.
    null_y, tokens (L, D) or (B, L, D) or a Condition: the network's null condition, needed unless guidance is 1. Given
    as tokens, the null pass gets no control; `y.null(network, keep_control=True)` is one that does.
    generators: one per image, for the algorithms that draw noise on the way (iddpm, sa-solver), so that an image
    depends on its own seed alone. prediction_type: what the network was trained to predict, epsilon or v_prediction.
    guidance_interval, on_step: as `denoise` has them.
    """
    scheduler = prepare_scheduler(algorithm, steps, prediction_type)
    return denoise(model, scheduler, noise, y, null_y, guidance, guidance_interval, generators, on_step)


@torch.no_grad()
def denoise(
    model: Network,
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    y: torch.Tensor | Condition,
    null_y: torch.Tensor | Condition | None,
    guidance: float,
    guidance_interval: tuple[float, float] | None = None,
    generators: torch.Generator | Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """The loop of every sampler: noise (B, C, H, W) through a scheduler's timesteps to network latents of that shape.

    guidance_interval: the lowest and highest noise level, std of noise over std of signal, at which there is guidance;
    outside it the null pass is not run (Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval").
    on_step: called after each step with its number, timestep and latents; what it returns, unless None, goes on.
    The last step leaves what each solver leaves: dpm-solver, ddim and sa-solver end at the lowest noise level, 0.01, as
    the original solver does, iddpm at none. Raises InputError for an interval that is none, ValueError for a scheduler
    that wants a learned variance from a network without one.
    """
    from diffusers import DDPMScheduler

    levels = linear_schedule().noise_levels
    low, high = check_guidance_interval(guidance_interval)
    # DDPM's is the one scheduler whose noise may have the variance that the network learned
    learned_variance = isinstance(scheduler, DDPMScheduler) and scheduler.config.variance_type == "learned_range"
    draws = {}
    if "generator" in inspect.signature(scheduler.step).parameters:  # of which only the stochastic ones make use
        draws["generator"] = list(generators) if isinstance(generators, Sequence) else generators
    x = noise * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        strength = guidance if low <= levels[int(t)] <= high else 1.0
        inputs = scheduler.scale_model_input(x, t)
        prediction, variance = guided_prediction(
            model, inputs, to_device(t, x.device).expand(len(x)), y, null_y, strength
        )
        if learned_variance:
            if variance is None:
                raise ValueError("the algorithm needs a network with learned variance (pred_sigma=True)")
            prediction = torch.cat([prediction, variance], dim=1)
        del variance  # with guidance a part of all that the network said: four times the latents of a large picture
        x = scheduler.step(prediction.float(), t, x, return_dict=False, **draws)[0]
        if on_step is not None:
            changed = on_step(i, t, x)
            x = x if changed is None else changed
    return x


def check_guidance_interval(interval: tuple[float, float] | None) -> tuple[float, float]:
    """The lowest and highest noise level with guidance; all of them without an interval. Raises InputError for none."""
    low, high = interval or (0.0, math.inf)
    levels = linear_schedule().noise_levels
    if not (0 <= low < high and low <= levels[-1] and high >= levels[0]):
        raise InputError(
            f"guidance interval {low:g} to {high:g}: expected noise levels with 0 <= LO < HI; "
            f"there are those from {levels[0]:.2g} to {levels[-1]:.0f}"
        )
    return low, high


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of image `index`: on the CPU, so that the image is the same on every device and batch size."""
    return torch.Generator().manual_seed(mix_seed(seed, index))


def initial_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Noise (B, *shape) in float32, row i drawn by generator i."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
