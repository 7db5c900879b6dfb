"""Cache schedules that fit a network: which steps to compute, by what its blocks add at every step for a few conditions.

Letters: S steps, F values of all that the blocks add at a step.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from diffusion.caching import NONE, CachableNetwork, CachedNetwork, CacheSchedule
from diffusion.condition import Condition
from diffusion.formats import LATENT_CHANNELS
from diffusion.generation.conditions import Conditions
from diffusion.generation.session import Session
from diffusion.sampling import image_generator, initial_noise
from diffusion.utils.errors import InputError


class _Recorder(CachedNetwork):
    """A network that computes every step, and keeps what the blocks add."""

    def __init__(self, network: CachableNetwork, steps: int):
        super().__init__(network, CacheSchedule((True,) * steps))
        self.added: list[torch.Tensor] = []

    def keep(self, added: torch.Tensor) -> None:
        self.added.append(added.detach().float().cpu().flatten())


def record_products(session: Session, conditions: Conditions, count: int) -> np.ndarray:
    """Sample for `count` conditions, and return the inner products (S, S) of what the blocks add at the steps, float64."""
    run, solver = session.run, replace(session.solver, block_cache=NONE)
    if run.student is not None:
        raise InputError(
            f"{run.folder} is a student, whose few steps leave nothing to reuse: expected a network of many steps"
        )
    if run.controlnet is not None:
        raise InputError(
            f"{run.folder} has a ControlNet: expected its base, whose schedule serves both; what blocks add is recorded without control"
        )
    recorder = _Recorder(run.model, solver.taken_steps)
    generators = [image_generator(session.seed, i) for i in range(count)]
    side = run.config.input_size
    noise = initial_noise(generators, (LATENT_CHANNELS, side, side))
    batch = Condition.cat([conditions[i].condition for i in range(count)])
    solver.latents(run, noise, batch, generators, recorder)
    lengths = {len(each) for each in recorder.added}
    if len(lengths) > 1:  # within a guidance interval passes have both halves: those of the images alone are compared
        recorder.added = [each[: min(lengths)] for each in recorder.added]
    rows = torch.stack(recorder.added)
    return (rows @ rows.T).double().numpy()


def find_schedule(products: np.ndarray, computed: int, order: int = 1) -> tuple[CacheSchedule, float]:
    """Return the schedule of so many computed steps whose predictions are nearest, and their mean relative squared error.

    products: inner products (S, S) of what the blocks add at the steps. By dynamic programming over the last two computed steps.
    Raises InputError for a number of steps or an order that cannot be.
    """
    steps = len(products)
    if not 2 <= computed <= steps:
        raise InputError(f"{computed} computed steps: expected 2 to {steps}, the steps that are taken")
    if order not in (0, 1):
        raise InputError(f"order {order}: a schedule is found for order 0 or 1")

    @cache
    def gap(before: int, last: int, following: int) -> float:
        """Return the errors of the steps between two computed ones, `before` being the one before the first of these."""
        return sum(_error(products, before, last, step, order) for step in range(last + 1, following))

    @cache
    def best(before: int, last: int, left: int) -> tuple[float, tuple[int, ...]]:
        """Return the least error from step `last` on with so many computed steps left, and these."""
        if not left:
            return gap(before, last, steps), ()
        found = (math.inf, ())
        for following in range(last + 1, steps - left + 1):
            error, rest = best(last, following, left - 1)
            found = min(found, (error + gap(before, last, following), (following, *rest)))
        return found

    error, chosen = best(0, 1, computed - 2)
    places = {0, 1, *chosen}
    return CacheSchedule(tuple(i in places for i in range(steps)), order), error / steps


def _error(products: np.ndarray, before: int, last: int, step: int, order: int) -> float:
    """Return the squared error of the prediction of a step, relative to what is predicted."""
    weights = np.zeros(len(products))
    weights[step] = 1.0
    slope = (step - last) / (last - before) if order else 0.0
    weights[last] -= 1 + slope
    weights[before] += slope
    return max(0.0, float(weights @ products @ weights)) / float(products[step, step])
