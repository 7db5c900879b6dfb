"""What losses and evaluations need of the task that is trained: what predicts, and how samples become a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from diffusion.condition import Condition
from diffusion.data.batch import BadItem, PatchBatch, PatchItem


class Predictor(Protocol):
    """A network, or one with others beside it, that predicts noise or velocity as PixArt.forward does."""

    @property
    def null_condition(self) -> torch.Tensor: ...

    def __call__(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor | Condition,
        dropped: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


class PredictingTask(Protocol):
    """A task whose trained network predicts, alone or with others."""

    def predictor(self, network: Any) -> Predictor: ...

    def sample(
        self,
        network: Any,
        noise: torch.Tensor,
        condition: Condition,
        steps: int,
        guidance: float,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor: ...

    def collate(self, items: Sequence[PatchItem | BadItem]) -> PatchBatch: ...
