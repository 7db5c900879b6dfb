"""Which timesteps training sees: from uniform numbers, one of each sample's own, to timesteps and importance weights.

A sampler draws nothing. It maps the numbers it is given, so a sample's timestep is the same however many processes
share the batch. All of this is a few numbers in float64, on the CPU, so that every machine agrees on them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from diffusion.schedule import TIMESTEPS
from diffusion.utils.errors import InputError


class TimestepSampler(ABC):
    """What every sampler offers; most learn nothing and have no state."""

    needs_losses = False  # whether `update` is to be told the losses

    @abstractmethod
    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u (B,) in [0, 1), on the CPU -> timestep (B,) int64 in 0..999, and the weight (B,) float32 of each loss."""

    def update(self, timestep: torch.Tensor, loss: torch.Tensor) -> None:
        """Learn from losses (N,) at timesteps (N,)."""
        return

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What it has learnt: tensors, or nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state. What another kind of sampler learnt has no meaning here."""
        return


class Uniform(TimestepSampler):
    """Every timestep as often as any other: the published way."""

    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return to_timestep(u.double()), torch.ones(len(u))


class LogitNormal(TimestepSampler):
    """t / 1000 whose logit is normal: Esser et al. 2024 (Stable Diffusion 3), section 3.1. `mean` moves it, `std` widens it.

    Middle steps are drawn more often, and the losses keep their weight: the density is the weighting. The paper's t is
    that of straight paths, where noise and signal are equal in the middle; on this schedule they are at step 259,
    which is the median of mean -1.05.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        if not 0 < std < math.inf:
            raise InputError(f"std {std}: expected more than 0, and finite")
        if not math.isfinite(mean):
            raise InputError(f"mean {mean}: expected a finite number")
        self.mean, self.std = mean, std

    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normal = torch.special.ndtri(u.double())  # -inf at 0, which is t = 0
        return to_timestep(torch.sigmoid(self.mean + self.std * normal)), torch.ones(len(u))


class LossAware(TimestepSampler):
    """Timesteps drawn in proportion to sqrt(E[loss^2]): Nichol & Dhariwal 2021 (Improved DDPM), section 3.3.

    The expectation is over the last 10 losses of each timestep; until all have 10, which takes some 23 000
    samples, timesteps are uniform. The weight 1 / (1000 p) keeps the expected loss what uniform timesteps make it; a
    uniform share of 0.001 in p bounds it.
    """

    needs_losses = True
    HISTORY = 10  # losses of each timestep
    UNIFORM_SHARE = 1e-3

    def __init__(self):
        self.losses = torch.zeros(TIMESTEPS, self.HISTORY, dtype=torch.float64)  # of each timestep, a ring
        self.seen = torch.zeros(TIMESTEPS, dtype=torch.int64)  # losses that went into each ring

    @property
    def is_warm(self) -> bool:
        return bool((self.seen >= self.HISTORY).all())

    def probabilities(self) -> torch.Tensor:
        """p (1000,) of each timestep, in float64."""
        if not self.is_warm:
            return torch.full((TIMESTEPS,), 1 / TIMESTEPS, dtype=torch.float64)
        size = self.losses.square().mean(1).sqrt()
        size = size.clamp(min=torch.finfo(size.dtype).tiny)  # losses that are all zero make no 0 / 0
        return (1 - self.UNIFORM_SHARE) * size / size.sum() + self.UNIFORM_SHARE / TIMESTEPS

    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_warm:
            return Uniform()(u)
        p = self.probabilities()
        timestep = torch.searchsorted(p.cumsum(0), u.double().contiguous(), right=True)
        timestep = timestep.clamp(max=TIMESTEPS - 1)  # the sum of all may be a rounding below u
        return timestep, (1 / (TIMESTEPS * p[timestep])).float()

    def update(self, timestep: torch.Tensor, loss: torch.Tensor) -> None:
        """Losses (N,) at timesteps (N,): those of all processes, in one order, before any importance weight.

        A timestep may come several times; its later losses replace its earlier ones. Losses that are no finite number
        are left out: fp16 meets some, and one would spoil all probabilities.
        """
        timestep, loss = timestep.cpu(), loss.detach().cpu().double()
        finite = loss.isfinite()
        timestep, order = timestep[finite].sort(stable=True)
        loss = loss[finite][order]
        count = timestep.bincount(minlength=TIMESTEPS)
        before = torch.arange(len(timestep)) - (count.cumsum(0) - count)[timestep]  # of the same timestep, in this call
        last = before >= count[timestep] - self.HISTORY  # no slot is written twice
        slot = (self.seen[timestep] + before) % self.HISTORY
        self.losses[timestep[last], slot[last]] = loss[last]
        self.seen += count

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"losses": self.losses.clone(), "seen": self.seen.clone()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state; with none, of a run that drew its timesteps otherwise, begin anew. Raises InputError."""
        own = self.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
        if state and shapes != expected:
            raise InputError(f"the timestep sampler's state has {shapes}: expected {expected}")
        for name, tensor in (state or LossAware().state_dict()).items():
            getattr(self, name).copy_(tensor)


def build_timestep_sampler(type: str = "uniform", mean: float = 0.0, std: float = 1.0) -> TimestepSampler:
    """Return the sampler of a name: uniform, logit_normal (of that mean and std), or loss_aware. Raises InputError."""
    builders = {"uniform": Uniform, "logit_normal": lambda: LogitNormal(mean, std), "loss_aware": LossAware}
    if type not in builders:
        raise InputError(f"timestep sampling {type!r}: expected one of {', '.join(builders)}")
    return builders[type]()


def to_timestep(position: torch.Tensor) -> torch.Tensor:
    """The timestep (B,) int64 whose thousandth of [0, 1) a position (B,) lies in; 1, which rounding makes, is the last."""
    return (position * TIMESTEPS).long().clamp(0, TIMESTEPS - 1)
