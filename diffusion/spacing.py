"""Where the steps of a solver lie: evenly in time, by noise level, by log-SNR, or at timesteps that are given.

A spacing is a text: `uniform`, evenly in time, as published; `karras` or `karras:RHO`, evenly in the noise level to the power 1/RHO, 7
without (Karras et al. 2022, equation 5); `power:P`, at (1 - i/n)^P of the last timestep, denser at low noise; `log-snr`, evenly in the
logarithm of the noise level (Lu et al. 2022, DPM-Solver); or timesteps `999,850,...`, which for another number of steps are
interpolated in the logarithm of the noise level (Sabour et al. 2024, Align Your Steps).
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from diffusion.schedule import TIMESTEPS, linear_schedule
from diffusion.utils.errors import InputError

UNIFORM, KARRAS, LOG_SNR, POWER = "uniform", "karras", "log-snr", "power"
DEFAULT_RHO = "7"


def place_steps(spacing: str, steps: int) -> list[int] | None:
    """Return the timesteps (steps,), falling, at which a network is asked; None for `uniform`, which solvers place themselves.

    Raises InputError for an unknown spacing, and for more steps than there are timesteps to place them at.
    """
    if spacing == UNIFORM:
        return None
    levels = linear_schedule().noise_levels.numpy()
    high, low = float(levels[-1]), float(levels[0])
    places = np.linspace(0, 1, steps + 1)[:-1]  # the end is the lowest level, where no network is asked
    kind, _, number = spacing.partition(":")
    if kind == POWER:
        times = (TIMESTEPS - 1) * (1 - places) ** _read_number(spacing, number or "1")
        return _spread(times.round().astype(int).tolist(), spacing)
    if spacing == LOG_SNR:
        wanted = np.exp(math.log(high) + places * (math.log(low) - math.log(high)))
    elif kind == KARRAS:
        rho = _read_number(spacing, number or DEFAULT_RHO)
        wanted = (high ** (1 / rho) + places * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    else:
        given = _read_timesteps(spacing)
        if len(given) == steps:
            return given
        knots = np.log(np.append(levels[given], low))
        wanted = np.exp(np.interp(places, np.linspace(0, 1, len(knots)), knots))
    found = np.interp(np.log(wanted), np.log(levels), np.arange(len(levels))).round().astype(int).tolist()
    return _spread(found, spacing)


def check_spacing(spacing: str) -> str:
    """Return a spacing. Raises InputError for an unknown one."""
    place_steps(spacing, 1)
    return spacing


def _spread(found: list[int], spacing: str) -> list[int]:
    """Return falling timesteps apart from each other: low noise levels lie close together."""
    for i in range(len(found) - 2, -1, -1):
        found[i] = max(found[i], found[i + 1] + 1)
    if found[0] >= TIMESTEPS:
        raise InputError(f"spacing {spacing}: {len(found)} steps do not fit in {TIMESTEPS} timesteps; take fewer")
    return found


def _read_number(spacing: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 1):
        raise InputError(f"spacing {spacing}: expected karras, karras:RHO or power:P, with a number of at least 1")
    return number


def _read_timesteps(spacing: str) -> list[int]:
    try:
        given = [int(part) for part in spacing.split(",")]
    except ValueError:
        raise InputError(
            f"spacing {spacing!r}: expected uniform, karras, karras:RHO, power:P, log-snr, or timesteps such as 999,750,500,250"
        ) from None
    falling = all(first > second for first, second in pairwise(given))
    if not (falling and given[0] < TIMESTEPS and given[-1] >= 0):
        raise InputError(f"spacing {spacing}: expected falling timesteps from {TIMESTEPS - 1} to 0")
    return given
