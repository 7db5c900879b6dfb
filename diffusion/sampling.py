"""Sampling: from noise to latents by the schedulers of diffusers on the project's betas, with one signature for all."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from diffusion.condition import Condition
from diffusion.formats import CONSISTENCY_SOLVER, DEFAULT_SOLVER
from diffusion.guidance import Network, guided_prediction
from diffusion.inpainting import KnownLatents
from diffusion.schedule import BETA_END, BETA_START, TIMESTEPS, add_noise, linear_schedule
from diffusion.spacing import UNIFORM, place_steps
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import to_device
from diffusion.utils.seeds import mix_seed

OnStep = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]  # (step, timestep, latents) -> other latents
Scheduler = Any  # a scheduler of diffusers, whose base class declares nothing of what they all have


def _dpm_solver(order: int) -> Callable[..., Scheduler]:
    def build(**betas: Any) -> Scheduler:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        # these choices reproduce the original continuous-time solver (order 2, time_uniform) to 5e-4
        return DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            solver_order=order,
            final_sigmas_type="sigma_min",
            euler_at_final=True,
            **betas,
        )

    return build


def _ancestral(**betas: Any) -> Scheduler:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(variance_type="learned_range", clip_sample=False, timestep_spacing="linspace", **betas)


def _unipc(**betas: Any) -> Scheduler:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return UniPCMultistepScheduler(solver_order=2, final_sigmas_type="sigma_min", **betas)


def _sa_solver(**betas: Any) -> Scheduler:
    from diffusers.schedulers.scheduling_sasolver import SASolverScheduler

    return SASolverScheduler(algorithm_type="data_prediction", predictor_order=2, corrector_order=2, **betas)


def _lcm(**betas: Any) -> Scheduler:
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    return LCMScheduler(original_inference_steps=TIMESTEPS, **betas)  # any timesteps


ALGORITHMS: dict[str, Callable[..., Scheduler]] = {
    DEFAULT_SOLVER: _dpm_solver(order=2),  # DPM-Solver++ 2M (Lu et al. 2022)
    "dpm-solver-3": _dpm_solver(order=3),  # DPM-Solver++ 3M, of the third order
    "unipc": _unipc,  # UniPC, with its corrector (Zhao et al. 2023), order 2
    # the first order of DPM-Solver++ is DDIM (Lu et al. 2022, section 4.1), exact for any number of steps
    "ddim": _dpm_solver(order=1),
    "iddpm": _ancestral,  # ancestral sampling with the learned variance (Nichol & Dhariwal 2021)
    "sa-solver": _sa_solver,  # stochastic Adams (Xue et al. 2023)
    CONSISTENCY_SOLVER: _lcm,  # of a student: to the end, and back with new noise (Luo et al. 2023, algorithm 3)
}
SPACED = (DEFAULT_SOLVER, "dpm-solver-3", "ddim", "unipc")  # those that follow a list of noise levels


def build_scheduler(algorithm: str, prediction_type: str = "epsilon") -> Scheduler:
    """Return a diffusers scheduler on the project's betas. Raises InputError for an unknown algorithm."""
    if algorithm not in ALGORITHMS:
        raise InputError(f"no sampling algorithm {algorithm!r}; known are {', '.join(ALGORITHMS)}")
    betas = {"beta_start": BETA_START, "beta_end": BETA_END, "beta_schedule": "linear"}
    return ALGORITHMS[algorithm](num_train_timesteps=TIMESTEPS, prediction_type=prediction_type, **betas)


def prepare_scheduler(
    algorithm: str, steps: int, prediction_type: str = "epsilon", spacing: str = UNIFORM
) -> Scheduler:
    """Return a scheduler set to `steps` steps, which lie as `spacing.place_steps` says.

    Raises InputError for an unknown algorithm or spacing, or steps that the algorithm cannot take or place so.
    """
    scheduler = build_scheduler(algorithm, prediction_type)
    if not (isinstance(steps, Integral) and 1 <= steps <= TIMESTEPS):
        raise InputError(f"{steps} sampling steps: expected 1 to {TIMESTEPS}")
    placed = place_steps(spacing, steps)
    if algorithm == CONSISTENCY_SOLVER:  # at the timesteps of other solvers' steps
        scheduler.set_timesteps(timesteps=placed or prepare_scheduler("ddim", steps).timesteps.tolist())
    else:
        scheduler.set_timesteps(steps)
    if placed is not None and algorithm != CONSISTENCY_SOLVER:
        if algorithm not in SPACED:
            raise InputError(f"{algorithm} places its steps itself: --spacing {spacing} goes with {', '.join(SPACED)}")
        levels = linear_schedule().noise_levels
        scheduler.timesteps = torch.tensor(placed)
        scheduler.sigmas = torch.cat([levels[placed], levels[:1]]).float()
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
    start: Start | None = None,
    spacing: str = UNIFORM,
    weak: Network | None = None,
    known: KnownLatents | None = None,
) -> torch.Tensor:
    """Return network latents (B, C, H, W) from noise of that shape and conditions y: tokens (B, L, D) or a Condition.

    The model is called with what y is: plain tokens, or a Condition.
    null_y, tokens (L, D) or (B, L, D) or a Condition: the network's null condition, needed unless guidance is 1. Given
    as tokens, the null pass gets no control; `y.null(network, keep_control=True)` is one that does.
    generators: one per image, for the algorithms that draw noise in every step (iddpm, sa-solver, lcm), so that an image
    depends on its own seed alone. prediction_type: what the network was trained to predict, epsilon or v_prediction.
    guidance_interval, on_step, start, weak, known: as `denoise` takes them. spacing: where the steps lie, as `diffusion.spacing` has it.
    Raises InputError for an algorithm, steps, spacing or interval that cannot be.
    """
    scheduler = prepare_scheduler(algorithm, steps, prediction_type, spacing)
    return denoise(
        model, scheduler, noise, y, null_y, guidance, guidance_interval, generators, on_step, start, weak, known
    )


@torch.no_grad()
def denoise(
    model: Network,
    scheduler: Scheduler,
    noise: torch.Tensor,
    y: torch.Tensor | Condition,
    null_y: torch.Tensor | Condition | None,
    guidance: float,
    guidance_interval: tuple[float, float] | None = None,
    generators: torch.Generator | Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
    start: Start | None = None,
    weak: Network | None = None,
    known: KnownLatents | None = None,
) -> torch.Tensor:
    """Return network latents (B, C, H, W) from noise of that shape: the loop over a scheduler's timesteps.

    y, null_y: as `sample_latents` takes them.
    guidance_interval: the lowest and highest noise level, std of noise over std of signal, at which there is guidance;
    outside it the null pass is not run (Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval").
    on_step: called after each step with its number, timestep and latents; latents that it returns replace them.
    start: latents to begin at instead of noise alone. weak: a network that guides instead of the null condition.
    known: latents that are kept in a part of the picture.
    dpm-solver, ddim and sa-solver end at the lowest noise level, 0.01, as the original solver does, iddpm at zero noise.
    Raises InputError for an interval without noise levels, ValueError for a scheduler that needs a learned variance and
    a network without one.
    """
    levels = linear_schedule().noise_levels
    low, high = check_guidance_interval(guidance_interval)
    learned_variance = _uses_learned_variance(scheduler)
    draws = {}
    if "generator" in inspect.signature(scheduler.step).parameters:  # only stochastic schedulers use it
        draws["generator"] = list(generators) if isinstance(generators, Sequence) else generators
    x, timesteps = noise * scheduler.init_noise_sigma, scheduler.timesteps
    if start is not None and start.strength < 1:
        x, timesteps = start.add_noise(noise, scheduler)
    if known is not None:
        x = known.put_back(x, noisy_latents(scheduler, known.latents, noise, timesteps[0]))
    for i, t in enumerate(timesteps):
        strength = guidance if low <= levels[int(t)] <= high else 1.0
        inputs = scheduler.scale_model_input(x, t)
        prediction, variance = guided_prediction(
            model, inputs, to_device(t, x.device).expand(len(x)), y, null_y, strength, weak
        )
        if learned_variance:
            if variance is None:
                raise ValueError("the algorithm needs a network with learned variance (pred_sigma=True)")
            prediction = torch.cat([prediction, variance], dim=1)
        del variance  # a view of the whole output, which with guidance is four times the latents of a large picture
        x = scheduler.step(prediction.float(), t, x, return_dict=False, **draws)[0]
        if known is not None:
            is_last = i + 1 == len(timesteps)
            kept = known.latents if is_last else noisy_latents(scheduler, known.latents, noise, timesteps[i + 1])
            x = known.put_back(x, kept)
        if on_step is not None:
            changed = on_step(i, t, x)
            x = x if changed is None else changed
    return x


@dataclass(frozen=True)
class Start:
    """Latents (B, C, H, W) of images to begin at, with noise on them (SDEdit, Meng et al. 2022).

    strength: share of the steps that are taken, those of the lower noise levels; 1 begins at noise alone. Raises InputError
    for one outside of 0 to 1, and 0, which changes nothing.
    """

    latents: torch.Tensor
    strength: float

    def __post_init__(self):
        check_strength(self.strength)

    def add_noise(self, noise: torch.Tensor, scheduler: Scheduler) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents with noise of the first level that is left of a scheduler's, and the timesteps from there on."""
        count = len(scheduler.timesteps)
        first = count - count_started_steps(self.strength, count)
        if hasattr(scheduler, "set_begin_index"):  # those that keep a list of noise levels
            scheduler.set_begin_index(first)
        timesteps = scheduler.timesteps[first:]
        return noisy_latents(scheduler, self.latents, noise, timesteps[0]), timesteps


def noisy_latents(
    scheduler: Scheduler, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """Return latents with noise, (B, C, H, W), of the timestep that a scheduler is at, as it counts noise.

    Those that begin at noise of a larger standard deviation than 1, such as Euler's, have x0 + sigma * noise, others sqrt(alpha_bar) * x0
    + sqrt(1 - alpha_bar) * noise.
    """
    latents = latents.to(noise)
    if scheduler.init_noise_sigma != 1:
        return scheduler.add_noise(latents, noise, timestep.to(noise.device).expand(len(noise)))
    times = to_device(timestep.long(), noise.device).expand(len(noise))
    return add_noise(linear_schedule(), latents, noise, times)


def count_started_steps(strength: float, steps: int) -> int:
    """Return how many of a solver's steps are taken from latents of images on, with noise on them by a strength: one or more."""
    return max(1, round(strength * steps))


def check_strength(strength: float) -> None:
    """Raise InputError for a strength that is not above 0 and at most 1."""
    if not 0 < strength <= 1:
        raise InputError(
            f"strength {strength:g}: expected more than 0, which changes nothing, up to 1, which keeps nothing"
        )


def check_edit_strength(strength: float) -> None:
    """Raise InputError for a strength of an edit that is not from 0, which takes no step, to 1."""
    if not 0 <= strength <= 1:
        raise InputError(
            f"strength {strength:g}: expected 0, the codec's reconstruction, to 1, which keeps nothing of what changes"
        )


def _uses_learned_variance(scheduler: Scheduler) -> bool:
    """Tell whether a scheduler adds noise of the variance that the network learned, which only DDPM's can."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    config = scheduler.config
    return isinstance(scheduler, DDPMScheduler) and config.variance_type == "learned_range"


def check_guidance_interval(
    interval: tuple[float, float] | None, name: str = "guidance interval"
) -> tuple[float, float]:
    """Return the lowest and highest noise level of an interval; None: all. Raises InputError for one without any.

    name: what messages call it.
    """
    if interval is not None and not (isinstance(interval, Sequence) and len(interval) == 2):
        raise InputError(f"{name} {interval}: expected two noise levels, LO and HI")
    low, high = interval or (0.0, math.inf)
    levels = linear_schedule().noise_levels
    if not (0 <= low < high and low <= levels[-1] and high >= levels[0]):
        raise InputError(
            f"{name} {low:g} to {high:g}: expected noise levels with 0 <= LO < HI; "
            f"there are those from {levels[0]:.2g} to {levels[-1]:.0f}"
        )
    return low, high


def image_generator(seed: int, index: int) -> torch.Generator:
    """Return the random generator of image `index`, on the CPU: images are then equal on every device and in any batch."""
    return torch.Generator().manual_seed(mix_seed(seed, index))


def initial_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Return noise (B, *shape) in float32, row i drawn by generator i."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
