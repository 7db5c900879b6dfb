"""Samples, as data sets return them, and batches, as the trainer takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch.utils.data import default_collate

from diffusion.condition import Condition
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class PatchItem:
    """One sample: latent (16, h, w) drawn from its posterior, on the VAE's scale; tokens (L, D); float32 both.

    name: the patch's path below ROOT/patches; crop: which crop of it, row-major; image: its pixels, uint8 (3, S, S);
    seed: of all else that is random about it, None when it was not asked for by a Draw; control (C, h, w): an image that
    steers the network, of the latent's height and width, where the data set has one; latents on the VAE's scale, too.
    """

    latent: torch.Tensor
    tokens: torch.Tensor
    name: str
    crop: int = 0
    image: torch.Tensor | None = None
    seed: int | None = None
    control: torch.Tensor | None = None


@dataclass(frozen=True)
class BadItem:
    """A sample that could not be read: its patch, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What every batch has: the names and seeds of its B samples, and those that had to be left out.

    Subclasses add fields of tensors whose first axis is B, and of Conditions.
    """

    names: list[str]
    seeds: list[int | None]
    bad: list[BadItem] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device) -> Self:
        """Copy to a device, overlapping with computation when the memory is pinned."""
        parts = {name: part.to(device, non_blocking=part.is_pinned()) for name, part in self._parts().items()}
        return replace(self, **parts)

    def pin_memory(self) -> Self:
        """Copy to pinned memory, from which a GPU reads while it computes."""
        return replace(self, **{name: part.pin_memory() for name, part in self._parts().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name, those of its condition among them."""
        found: dict[str, torch.Tensor] = {}
        for name, part in self._parts().items():
            found |= part.tensors() if isinstance(part, Condition) else {name: part}
        return found

    def _parts(self) -> dict[str, torch.Tensor | Condition]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, (torch.Tensor, Condition))}


@dataclass(frozen=True)
class PatchBatch(Batch):
    """A batch of patches: latents (B, 16, h, w) and the condition of each, tokens (B, L, D)."""

    latents: torch.Tensor
    condition: Condition


def collate(items: Sequence[PatchItem | BadItem]) -> PatchBatch:
    """Return a batch of the items that could be read. Raises InputError when none could: there is nothing to compute.

    Items with a control make a condition with one; all of a batch have one, or none.
    """
    bad = [item for item in items if isinstance(item, BadItem)]
    readable = [item for item in items if isinstance(item, PatchItem)]
    if not readable:
        raise InputError(f"none of the {len(bad)} items of a batch can be read; the first: {bad[0].reason}")
    controls = [item.control for item in readable if item.control is not None]
    if controls and len(controls) < len(readable):
        raise ValueError(f"{len(controls)} of {len(readable)} items have a control: expected all or none")
    return PatchBatch(
        # in a worker, default_collate stacks into the memory that is shared with the trainer; torch.stack needs a copy more
        latents=default_collate([item.latent for item in readable]),
        condition=Condition(
            default_collate([item.tokens for item in readable]), default_collate(controls) if controls else None
        ),
        names=[item.name for item in readable],
        seeds=[item.seed for item in readable],
        bad=bad,
    )
