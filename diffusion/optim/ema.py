"""Moving averages of a network's weights: exponential, and of a length that grows with the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusion.utils.errors import InputError
from diffusion.utils.sharded import local_shard, shard_like

LONGEST = 12**-0.5  # relative length of the plain mean over all steps, which has gamma 0


class EMA:
    """The average of every trained parameter of a network, and a copy of its buffers: its state dict without frozen weights.

    The null condition is a buffer: an average without it would guide against another network's null.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Begin at the network's weights. Raises ValueError for parameters of two names, which a swap would exchange twice."""
        if len(list(model.named_parameters())) != len(list(model.named_parameters(remove_duplicate=False))):
            raise ValueError("the network ties parameters together: an average of them is not supported")
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in trained_state(model).items()}

    def update(self, model: nn.Module) -> None:
        """average += (1 - decay) * (weights - average)."""
        self.move(model, 1 - self.decay)

    @torch.no_grad()
    def move(self, model: nn.Module, share: float) -> None:
        """Move this share of the way to the network's weights, in one fused call for all parameters."""
        current = trained_state(model)
        if current.keys() != self.tensors.keys():
            raise RuntimeError(
                "the network's tensors are not those of its average; it was changed after the average was made"
            )
        averaged = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        own, new = ([local_shard(tensors[name]) for name in averaged] for tensors in (self.tensors, current))
        torch._foreach_lerp_(own, new, share)
        for name in current.keys() - set(averaged):
            self.tensors[name].copy_(current[name])

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take the averages of a checkpoint, with the same names and shapes."""
        for name, tensor in self.tensors.items():
            tensor.copy_(shard_like(tensors[name], tensor))

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the averages and the network's weights, in place: twice changes nothing, to the bit."""
        current = model.state_dict()
        for name, tensor in self.tensors.items():
            mine, theirs = local_shard(tensor), local_shard(current[name])
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's state dict without the parameters that require no gradient."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


class PowerEMA:
    """Averages with a power-function profile, one for each relative length: EDM2 (Karras et al. 2024), section 3.1.

    At step t the weights of step s count in proportion to s^gamma: the average always spans the same share of the run,
    and forgets where that began. The relative length is the profile's standard deviation over t; the paper keeps 0.05
    and 0.10, from whose snapshots `diffusion.training.checkpoints.posthoc_ema` makes averages of other lengths.
    """

    def __init__(self, model: nn.Module, lengths: Sequence[float]):
        """Raises InputError for a length that no profile has."""
        self.gammas = {length: gamma_from_length(length) for length in lengths}
        self.averages = {length: EMA(model, decay=0.0) for length in lengths}
        self.step = 0

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step 1, 2, ...; steps left out count as spent at these weights."""
        if step <= self.step:
            raise ValueError(f"step {step} after step {self.step}: expected a later one")
        for length, average in self.averages.items():
            average.move(model, 1 - power_decay(self.gammas[length], self.step, step))
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        """Return the step and, by length, the averages themselves (no copies)."""
        return {"step": self.step, "averages": {length: average.tensors for length, average in self.averages.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, of which lengths may be left out. Raises InputError for a length it does not have."""
        kept = state.get("averages", {})
        missing = [f"{length:g}" for length in self.averages if length not in kept]
        if missing:
            raise InputError(
                f"the checkpoint has no average of relative length {', '.join(missing)} (it has: "
                f"{', '.join(f'{length:g}' for length in kept) or 'none'}), and one needs all steps; "
                "set power_ema.lengths to what it has, or start a new run"
            )
        for length, average in self.averages.items():
            average.load(kept[length])
        self.step = state.get("step", 0)


def power_decay(gamma: float, before: int, step: int) -> float:
    """Return beta between two updates, (before / step)^(gamma + 1): from one step to the next (1 - 1/t)^(gamma + 1).

    EDM2, equation 3. The first update takes the weights as they are.
    """
    return (before / step) ** (gamma + 1)


def gamma_from_length(length: float) -> float:
    """Return the exponent whose profile on [0, 1] has this standard deviation, which EDM2 calls sigma_rel.

    The inverse of `length_from_gamma`, a cubic in gamma (EDM2, algorithm 2): for lengths below 12^-1/2 its coefficients
    change sign once, so it has one positive root. Raises InputError for other lengths.
    """
    if not 0 < length < LONGEST:
        raise InputError(f"relative length {length:g}: expected 0 < length < {LONGEST:.3f}")
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(root.real for root in roots))


def length_from_gamma(gamma: float) -> float:
    """Return the standard deviation of the profile (gamma + 1) s^gamma on [0, 1]."""
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5
