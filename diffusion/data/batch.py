"""Samples, as data sets return them, and batches, as the trainer takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.utils.data import default_collate

from diffusion.utils.errors import InputError


@dataclass(frozen=True)
class PatchItem:
    """One sample: latent (16, h, w) drawn from its posterior, on the VAE's scale; tokens (L, D); float32 both.

    name: the patch's path below ROOT/patches; crop: which crop of it, row-major; image: its pixels, uint8 (3, S, S);
    seed: of all else that is random about it, None when it was not asked for by a Draw.
    """

    latent: torch.Tensor
    tokens: torch.Tensor
    name: str
    crop: int = 0
    image: torch.Tensor | None = None
    seed: int | None = None


@dataclass(frozen=True)
class BadItem:
    """A sample that could not be read: its patch, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class PatchBatch:
    """A batch: latents (B, 16, h, w), tokens (B, L, D), which patches they are, their seeds, and which had to be left out."""

    latents: torch.Tensor
    tokens: torch.Tensor
    names: list[str]
    seeds: list[int | None]
    bad: list[BadItem] = field(default_factory=list)

    def to(self, device: torch.device) -> PatchBatch:
        """Copy to a device, overlapping with computation when the memory is pinned."""
        parts = {name: getattr(self, name) for name in ("latents", "tokens")}
        return replace(self, **{name: part.to(device, non_blocking=part.is_pinned()) for name, part in parts.items()})

    def pin_memory(self) -> PatchBatch:
        """Copy to pinned memory, as DataLoader asks for."""
        return replace(self, latents=self.latents.pin_memory(), tokens=self.tokens.pin_memory())


def collate(items: Sequence[PatchItem | BadItem]) -> PatchBatch:
    """Return a batch of the items that could be read. Raises InputError when none could: there is nothing to compute."""
    bad = [item for item in items if isinstance(item, BadItem)]
    readable = [item for item in items if isinstance(item, PatchItem)]
    if not readable:
        raise InputError(f"none of the {len(bad)} items of a batch can be read; the first: {bad[0].reason}")
    return PatchBatch(
        # in a worker, default_collate stacks into the memory that is shared with the trainer; torch.stack needs a copy more
        latents=default_collate([item.latent for item in readable]),
        tokens=default_collate([item.tokens for item in readable]),
        names=[item.name for item in readable],
        seeds=[item.seed for item in readable],
        bad=bad,
    )
