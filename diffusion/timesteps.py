"""Timestep samplers of training: they map each sample's uniform random number to a timestep and an importance weight.

A sampler has no random generator. It maps the numbers it is given, so that a sample's timestep is the same however many
processes share the batch. The few numbers are computed in float64 on the CPU, so that every machine agrees on them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from diffusion.schedule import TIMESTEPS
from diffusion.utils.errors import InputError


class TimestepSampler(ABC):
    """The interface of timestep samplers; most need no losses and have no state."""

    needs_losses = False  # whether `update` must be called with the losses

    @abstractmethod
    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map u (B,) in [0, 1), on the CPU, to timesteps (B,) int64 in 0..999 and the weight (B,) float32 of each loss."""

    def update(self, timestep: torch.Tensor, loss: torch.Tensor) -> None:
        """Update the sampler with losses (N,) at timesteps (N,)."""
        return

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state for a checkpoint: tensors by name, or nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Resume from a state; one of another kind of sampler is ignored."""
        return


class Uniform(TimestepSampler):
    """Uniform timesteps, as published."""

    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return to_timestep(u.double()), torch.ones(len(u))


class LogitNormal(TimestepSampler):
    """Timesteps for which the logit of t / 1000 is normal: Esser et al. 2024 (Stable Diffusion 3), section 3.1.

    Timesteps in the middle are drawn more often, and their losses keep weight 1: the density is the weighting. In the
    paper noise and signal are equal at t = 1/2; on this schedule they are equal at timestep 259, which is the median
    for mean -1.05.
    uniform_share: share of samples whose timestep is uniform instead, so that a narrow distribution leaves no timestep
    untrained that sampling passes through.
    Raises InputError for a std that is not positive and finite, a mean that is not finite, and a share outside 0..1.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, uniform_share: float = 0.0):
        if not 0 < std < math.inf:
            raise InputError(f"std {std}: expected more than 0, and finite")
        if not math.isfinite(mean):
            raise InputError(f"mean {mean}: expected a finite number")
        if not 0 <= uniform_share < 1:
            raise InputError(f"uniform_share {uniform_share}: expected 0 or more, and less than 1")
        self.mean, self.std, self.uniform_share = mean, std, uniform_share

    def __call__(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u, share = u.double(), self.uniform_share
        rest = ((u - share) / (1 - share)).clamp(min=0)  # uniform again, of the numbers that are not below the share
        normal = torch.special.ndtri(rest)  # -inf at 0, which is t = 0
        position = torch.sigmoid(self.mean + self.std * normal)
        if share:
            position = torch.where(u < share, u / share, position)
        return to_timestep(position), torch.ones(len(u))


class LossAware(TimestepSampler):
    """Timesteps drawn in proportion to sqrt(E[loss^2]): Nichol & Dhariwal 2021 (Improved DDPM), section 3.3.

    The expectation is over the last 10 losses of each timestep. Until every timestep has 10, which takes about 23 000
    samples, timesteps are uniform. The weight 1 / (1000 p) keeps the expected loss equal to that of uniform timesteps;
    a uniform share of 0.001 in p bounds the weight.
    """

    needs_losses = True
    HISTORY = 10  # losses of each timestep
    UNIFORM_SHARE = 1e-3

    def __init__(self):
        self.losses = torch.zeros(TIMESTEPS, self.HISTORY, dtype=torch.float64)  # a ring buffer for each timestep
        self.seen = torch.zeros(TIMESTEPS, dtype=torch.int64)  # losses written to each ring buffer so far

    @property
    def is_warm(self) -> bool:
        """Whether every timestep has as many losses as are kept."""
        return bool((self.seen >= self.HISTORY).all())

    def probabilities(self) -> torch.Tensor:
        """Return the probability of each timestep, (1000,) float64."""
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
        """Record losses (N,) at timesteps (N,): those of all processes, in one order, before any importance weight.

        A timestep may occur several times; later losses replace earlier ones. NaN and infinity are left out: they occur
        in fp16, and one of them would make all probabilities NaN.
        """
        timestep, loss = timestep.cpu(), loss.detach().cpu().double()
        finite = loss.isfinite()
        timestep, order = timestep[finite].sort(stable=True)
        loss = loss[finite][order]
        count = timestep.bincount(minlength=TIMESTEPS)
        rank = torch.arange(len(timestep)) - (count.cumsum(0) - count)[timestep]  # of the same timestep, in this call
        last = rank >= count[timestep] - self.HISTORY  # no slot is written twice
        slot = (self.seen[timestep] + rank) % self.HISTORY
        self.losses[timestep[last], slot[last]] = loss[last]
        self.seen += count

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"losses": self.losses.clone(), "seen": self.seen.clone()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Resume from a state; an empty one, of a run with another sampler, resets. Raises InputError for other shapes."""
        current = self.state_dict()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in current.items()}
        if state and shapes != expected:
            raise InputError(f"the timestep sampler's state has {shapes}: expected {expected}")
        for name, tensor in (state or LossAware().state_dict()).items():
            getattr(self, name).copy_(tensor)


def build_timestep_sampler(
    type: str = "uniform", mean: float = 0.0, std: float = 1.0, uniform_share: float = 0.0
) -> TimestepSampler:
    """Return the sampler of a type: uniform, logit_normal (which the numbers are of), or loss_aware. Raises InputError."""
    builders = {
        "uniform": Uniform,
        "logit_normal": lambda: LogitNormal(mean, std, uniform_share),
        "loss_aware": LossAware,
    }
    if type not in builders:
        raise InputError(f"timestep sampling {type!r}: expected one of {', '.join(builders)}")
    return builders[type]()


def to_timestep(position: torch.Tensor) -> torch.Tensor:
    """Return the timestep (B,) int64 of positions (B,) in [0, 1); 1, which rounding may produce, is the last timestep."""
    return (position * TIMESTEPS).long().clamp(0, TIMESTEPS - 1)
