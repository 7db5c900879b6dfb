"""What a data set gives and what the trainer takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class PatchItem:
    """One sample: latent (16, h, w) drawn from its posterior, on the VAE's scale; tokens (L, D); float32 both.

    name: the patch's path below ROOT/patches; crop: which crop of it, row-major; image: its pixels, uint8 (3, S, S).
    """

    latent: torch.Tensor
    tokens: torch.Tensor
    name: str
    crop: int = 0
    image: torch.Tensor | None = None

    def __getitem__(self, field: str) -> Any:
        """Items also answer by field name, for collate functions written for dictionaries."""
        return getattr(self, field)


@dataclass(frozen=True)
class PatchBatch:
    """A batch: latents (B, 16, h, w), tokens (B, L, D), and which patches they are."""

    latents: torch.Tensor
    tokens: torch.Tensor
    names: list[str]

    def to(self, device: torch.device) -> PatchBatch:
        """Copy to a device, overlapping with computation when the memory is pinned."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("latents", "tokens")}
        return replace(self, **moved)

    def pin_memory(self) -> PatchBatch:
        return replace(self, latents=self.latents.pin_memory(), tokens=self.tokens.pin_memory())


def collate(items: Sequence[PatchItem]) -> PatchBatch:
    return PatchBatch(
        latents=torch.stack([item.latent for item in items]),
        tokens=torch.stack([item.tokens for item in items]),
        names=[item.name for item in items],
    )
