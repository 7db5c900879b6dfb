"""Caching of blocks between the steps of a solver: at some steps what the blocks add is predicted from earlier steps, not computed.

Features change slowly from step to step (Ma et al. 2024, Learning-to-cache; Selvaraju et al. 2024, FORA), and nearly along a line (Liu
et al. 2025, TaylorSeers). What all blocks together add to the embedded tokens is kept, and predicted by a Taylor series of finite
differences; embedding and final layer are computed at every step.
Letters: B batch, N image tokens, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from diffusion.condition import Condition, uncontrolled_tokens
from diffusion.utils.errors import InputError
from diffusion.utils.text import read_json

NONE = "none"
EVERY = {"balanced": 2, "fast": 3}  # steps from one that is computed to the next
FIRST = 2  # steps that are always computed: the layout is decided there, and the second gives the first difference
ORDERS = (0, 1, 2)


@dataclass(frozen=True)
class CacheSchedule:
    """Which steps compute the blocks. computed: by step, True or False; order: of the Taylor series at the others.

    Raises InputError for a schedule whose first step is not computed, and an unknown order.
    """

    computed: tuple[bool, ...]
    order: int = 1

    def __post_init__(self):
        if not self.computed or not self.computed[0]:
            raise InputError("a cache schedule computes the first step: expected computed to begin with true")
        if self.order not in ORDERS:
            raise InputError(f"a cache schedule of order {self.order}: expected 0, 1 or 2")

    def to_dict(self) -> dict[str, Any]:
        """Return the schedule for JSON."""
        return {"computed": list(self.computed), "order": self.order}


def read_schedule(name: str, steps: int) -> CacheSchedule | None:
    """Return the schedule of a name for a number of steps, or that of a JSON file; None for `none`.

    Raises MissingError, InputError for another name, a file that is no schedule, and one of another number of steps.
    """
    if name == NONE:
        return None
    if name in EVERY:
        return CacheSchedule(tuple(i < FIRST or (i - FIRST) % EVERY[name] == EVERY[name] - 1 for i in range(steps)))
    path = Path(name)
    if path.suffix != ".json":
        raise InputError(
            f"cache {name!r}: expected {', '.join((NONE, *EVERY))}, or a schedule.json that pixcell block-cache wrote"
        )
    content = read_json(path, "cache schedule", "name another, or make it with pixcell block-cache")
    computed, order = content.get("computed"), content.get("order")
    if not (isinstance(computed, list) and all(isinstance(each, bool) for each in computed) and isinstance(order, int)):
        raise InputError(
            f"{path} is no cache schedule: expected computed, a list of true and false, and order, a number"
        )
    if len(computed) != steps:
        raise InputError(
            f"{path} is a cache schedule of {len(computed)} steps, and {steps} are taken: take as many, or make another"
        )
    return CacheSchedule(tuple(computed), order)


class CachableNetwork(Protocol):
    """A network whose blocks can be run apart from its embedding and final layer, as PixArt's."""

    @property
    def null_condition(self) -> torch.Tensor: ...
    def embed(
        self, x: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor, dropped: torch.Tensor | None = None
    ) -> Any: ...
    def run_blocks(self, inputs: Any, residuals: Sequence[torch.Tensor] | None = None) -> torch.Tensor: ...
    def predict(self, tokens: torch.Tensor, inputs: Any, cells: Sequence[int]) -> torch.Tensor: ...


class Differences:
    """The last values of a quantity at rising steps, and its prediction at later ones by Newton's divided differences."""

    def __init__(self, order: int):
        self.order = order
        self.steps: list[int] = []
        self.values: list[torch.Tensor] = []

    def add(self, step: int, value: torch.Tensor) -> None:
        """Keep a value; of the earlier ones, as many as the order needs."""
        self.steps, self.values = [*self.steps, step][-self.order - 1 :], [*self.values, value][-self.order - 1 :]

    def predict(self, step: int) -> torch.Tensor:
        """Return the value at a step of the polynomial through the values that are kept."""
        steps, table = self.steps, list(self.values)
        for level in range(1, len(table)):  # from the last on: the coefficients of Newton's form
            for i in range(len(table) - 1, level - 1, -1):
                table[i] = (table[i] - table[i - 1]) / (steps[i] - steps[i - level])
        value = table[-1]
        for i in range(len(table) - 2, -1, -1):
            value = value * (step - steps[i]) + table[i]
        return value


class CachedNetwork:
    """A network for the steps of one sampling, called as the network itself is; its calls at one timestep are one step.

    Calls of a step are told apart by their order, as those of a large picture's windows. One whose batch is not that of the
    step before, as at the ends of a guidance interval, is computed.
    """

    def __init__(self, network: CachableNetwork, schedule: CacheSchedule):
        self.network, self.schedule = network, schedule
        self._timestep: int | None = None
        self._step, self._call = -1, 0
        self._kept: dict[int, Differences] = {}

    @property
    def null_condition(self) -> torch.Tensor:
        """Return the network's null condition (L, D)."""
        return self.network.null_condition

    def reuses(self, x: torch.Tensor, timestep: torch.Tensor) -> bool:
        """Tell whether the next call, of latents x (B, C, H, W), is predicted from earlier steps."""
        step, call = self._next(int(timestep[0]))
        return self._can_reuse(step, call, len(x))

    def __call__(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor | Condition,
        dropped: torch.Tensor | None = None,
        residuals: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Predict as PixArt does. Raises InputError for more steps than the schedule has."""
        now = int(timestep[0])
        self._step, self._call = self._next(now)
        self._timestep = now
        if self._step >= len(self.schedule.computed):
            raise InputError(f"a cache schedule of {len(self.schedule.computed)} steps: one more was taken")
        inputs = self.network.embed(x, timestep, uncontrolled_tokens(y), dropped)
        if self._can_reuse(self._step, self._call, len(x)):
            added = self._kept[self._call].predict(self._step)
        else:
            added = self.network.run_blocks(inputs, residuals) - inputs.x
            kept = self._kept.get(self._call)
            if kept is None or len(kept.values[-1]) != len(x):
                kept = self._kept[self._call] = Differences(self.schedule.order)
            kept.add(self._step, added)
            self.keep(added)
        return self.network.predict(inputs.x + added, inputs, x.shape[2:])

    def keep(self, added: torch.Tensor) -> None:
        """Look at what the blocks have added (B, N, W); for those who record it."""

    def _next(self, timestep: int) -> tuple[int, int]:
        """Return step and call of the next call."""
        return (self._step, self._call + 1) if timestep == self._timestep else (self._step + 1, 0)

    def _can_reuse(self, step: int, call: int, count: int) -> bool:
        kept = self._kept.get(call)
        steps = self.schedule.computed
        return step < len(steps) and not steps[step] and kept is not None and len(kept.values[-1]) == count
