"""What a network is given beside noisy latents and timestep: condition tokens and, where there is one, a control.

Letters: B samples, L tokens of width D, C channels of a control of h x w cells, n windows of a large picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch


class HasNullCondition(Protocol):
    """A network that keeps the tokens (L, D) which stand for no condition."""

    @property
    def null_condition(self) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class Condition:
    """The conditions of B samples.

    tokens (B, L, D); of large pictures (B, n, L, D), those of each window.
    control (B, C, h, w), of the latents' height and width: an image that steers the network, or None.
    weight (B,) float32: how much each sample's control counts; 1 where nothing is given, 0 for a sample without control.
    Raises ValueError for a control or weight of another batch size than the tokens', and a weight without a control.
    """

    tokens: torch.Tensor
    control: torch.Tensor | None = None
    weight: torch.Tensor | None = None

    def __post_init__(self):
        if self.control is None:
            if self.weight is not None:
                raise ValueError("a weight of a control that is not given")
            return
        if self.weight is None:
            object.__setattr__(self, "weight", torch.ones(len(self.control), device=self.control.device))  # is frozen
        counts = [len(part) for part in (self.tokens, self.control, self.weight) if part is not None]
        if len(set(counts)) > 1:
            raise ValueError(f"tokens, control and weights of {counts} samples: expected as many of each")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int | slice | list[int] | torch.Tensor) -> Condition:
        """Return the conditions of some of the samples; an int gives a batch of one.

        Views of the tensors for an int or a slice, as of tensors. Raises IndexError.
        """
        if isinstance(index, int):
            first = range(len(self))[index]
            index = slice(first, first + 1)
        if self.control is None or self.weight is None:
            return Condition(self.tokens[index])
        return Condition(self.tokens[index], self.control[index], self.weight[index])

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """Move and cast as `Tensor.to` does; weights stay in float32."""
        tokens = self.tokens.to(*args, **kwargs)
        if self.control is None or self.weight is None:
            return Condition(tokens)
        control = self.control.to(*args, **kwargs)
        return Condition(tokens, control, self.weight.to(control.device))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are there, by name."""
        parts = {"tokens": self.tokens, "control": self.control, "weight": self.weight}
        return {name: part for name, part in parts.items() if part is not None}

    def pin_memory(self) -> Condition:
        """Copy to pinned memory, from which a GPU reads while it computes."""
        return Condition(**{name: part.pin_memory() for name, part in self.tensors().items()})

    def is_pinned(self) -> bool:
        """Tell whether all of it is in pinned memory."""
        return all(part.is_pinned() for part in self.tensors().values())

    def repeat_interleave(self, times: int) -> Condition:
        """Return every sample so many times in a row."""
        return self[torch.arange(len(self)).repeat_interleave(times)]

    def replace_tokens(self, tokens: torch.Tensor, keep_control: bool = False) -> Condition:
        """Return as many conditions of these tokens, (L, D) or (B, L, D), of the same type; without control, unless kept."""
        tokens = tokens.to(self.tokens).expand_as(self.tokens)
        return replace(self, tokens=tokens) if keep_control else Condition(tokens)

    def null(self, network: HasNullCondition, keep_control: bool = False) -> Condition:
        """Return as many of the network's null condition; without control, as ControlNets are released, unless kept."""
        return self.replace_tokens(network.null_condition, keep_control)

    def window(self, number: int, row: int, column: int, side: int) -> Condition:
        """Return what one window of large pictures is given: its tokens (B, L, D), and the control cut to its cells.

        number: of the window, among n; row, column: its first cell; side: how many cells it has, along each axis.
        """
        if self.control is None:
            return Condition(self.tokens[:, number])
        control = self.control[:, :, row : row + side, column : column + side]
        return Condition(self.tokens[:, number], control, self.weight)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Join batches. Where only some have a control, the others get one of zeros, of weight 0."""
        tokens = torch.cat([condition.tokens for condition in conditions])
        example = next((condition.control for condition in conditions if condition.control is not None), None)
        if example is None:
            return Condition(tokens)
        controls = [
            condition.control
            if condition.control is not None
            else example.new_zeros(len(condition), *example.shape[1:])
            for condition in conditions
        ]
        weights = [
            condition.weight if condition.weight is not None else torch.zeros(len(condition), device=example.device)
            for condition in conditions
        ]
        return Condition(tokens, torch.cat(controls), torch.cat(weights))


def as_condition(y: torch.Tensor | Condition) -> Condition:
    """Return plain tokens (B, L, D) as a condition, and a condition as it is."""
    return y if isinstance(y, Condition) else Condition(y)


def uncontrolled_tokens(y: torch.Tensor | Condition) -> torch.Tensor:
    """Return the tokens of a condition, for networks that take no control.

    Raises ValueError for a control whose weight is not zero.
    """
    if not isinstance(y, Condition):
        return y
    if y.weight is not None and bool(y.weight.any()):
        raise ValueError("the condition has a control, and this network takes none")
    return y.tokens
