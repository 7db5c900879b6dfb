"""From noise to latents: the schedulers of diffusers on the project's own betas, one signature for every algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from diffusion.errors import InputError
from diffusion.guidance import Network, guided_prediction
from diffusion.schedule import TIMESTEPS, linear_schedule
from diffusion.seeds import mix_seed

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


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


def make_scheduler(algorithm: str, steps: int, prediction_type: str = "epsilon") -> SchedulerMixin:
    """A diffusers scheduler set to `steps` steps. Raises InputError for an unknown algorithm or a step count that is none."""
    if algorithm not in ALGORITHMS:
        raise InputError(f"no sampling algorithm {algorithm!r}; known are {', '.join(ALGORITHMS)}")
    if not 1 <= steps <= TIMESTEPS:
        raise InputError(f"{steps} sampling steps: expected 1 to {TIMESTEPS}")
    betas = linear_schedule().betas.float().numpy()
    scheduler = ALGORITHMS[algorithm](trained_betas=betas, prediction_type=prediction_type)
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
    y: torch.Tensor,
    null_y: torch.Tensor | None = None,
    steps: int = 20,
    guidance: float = 2.0,
    algorithm: str = "dpm-solver",
    generators: Sequence[torch.Generator] | None = None,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    """Network latents (B, C, H, W) from noise of that shape and conditions y (B, L, D).

    null_y (L, D) or (B, L, D): the network's null condition, needed unless guidance is 1.
    generators: one per image, for the algorithms that draw noise on the way (iddpm, sa-solver), so that an image
    depends on its own seed alone. prediction_type: what the network was trained to predict, epsilon or v_prediction.
    """
    scheduler = make_scheduler(algorithm, steps, prediction_type)
    generators = list(generators) if generators is not None else None
    # iddpm is the one algorithm here whose noise has the variance that the network learned
    learned_variance = scheduler.config.get("variance_type") == "learned_range"
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction, variance = guided_prediction(model, x, t.to(x.device).expand(len(x)), y, null_y, guidance)
        if learned_variance:
            if variance is None:
                raise ValueError(f"{algorithm} needs a network with learned variance (pred_sigma=True)")
            prediction = torch.cat([prediction, variance], dim=1)
        # only the stochastic schedulers draw from the generators; ddim and dpm-solver leave them alone
        x = scheduler.step(prediction.float(), t, x, generator=generators, return_dict=False)[0]
    return x


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of image `index`: on the CPU, so that the image is the same on every device and batch size."""
    return torch.Generator().manual_seed(mix_seed(seed, index))


def initial_noise(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """Noise (B, *shape) in float32, row i drawn by generator i."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
