"""Jumps: a network that is told, beside the timestep of its latents, the timestep that a step of the solver ends at.

Letters: B batch, L condition tokens, D their width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch

from diffusion.condition import Condition
from diffusion.model.embed import TimestepEmbedder
from diffusion.model.pixart import PixArt

TARGET_EMBEDDER = "target_embedder"  # the part of a network that embeds the timestep to jump to


def add_target_embedder(network: PixArt) -> None:
    """Give a network a second embedding of time, of the timestep that a jump ends at; it changes no prediction at first.

    The target's embedding is added to that of the timestep (Kim et al. 2024, Consistency Trajectory Models). Its first layer
    begins as the timestep's, the second at zero.
    """
    embedder = TimestepEmbedder(network.config.hidden_size).to(network.null_condition)
    embedder.mlp[0].load_state_dict(network.t_embedder.mlp[0].state_dict())
    torch.nn.init.zeros_(cast(torch.Tensor, embedder.mlp[2].weight))
    torch.nn.init.zeros_(cast(torch.Tensor, embedder.mlp[2].bias))
    network.target_embedder = embedder
    network.config = dataclasses.replace(network.config, use_target_timestep=True)


def jump_targets(timesteps: Sequence[int]) -> torch.Tensor:
    """Return, at the place of each timestep of a solver, falling, the one that its step ends at, 0 for the last, and -1 elsewhere.

    int64 (T,), T being one more than the first timestep.
    """
    targets = torch.full((max(timesteps) + 1,), -1)
    targets[list(timesteps)] = torch.tensor([*timesteps[1:], 0])
    return targets


class JumpingNetwork:
    """A student of trajectories for the steps of one sampling: it is told at each timestep the one that the step ends at.

    timesteps: those of the solver, falling; the last step ends at timestep 0. Called as the network itself is.
    """

    def __init__(self, network: PixArt, timesteps: Sequence[int]):
        self.network = network
        self.targets = jump_targets(timesteps).to(network.null_condition.device)

    @property
    def null_condition(self) -> torch.Tensor:
        """Return the network's null condition (L, D)."""
        return self.network.null_condition

    def __call__(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor | Condition,
        dropped: torch.Tensor | None = None,
        residuals: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Predict as PixArt does, for the jump that begins at the timestep (B,). Raises ValueError for another than the solver's."""
        target = self.targets[timestep]
        if target.device.type == "cpu" and bool((target < 0).any()):  # a GPU would wait for the answer
            raise ValueError(f"timesteps {timestep.tolist()}: no step of this sampling begins there")
        return self.network(x, timestep, y, dropped, residuals, target)
