"""Initial weights of one stage from those of another: which tensors are taken over, which are new, which are ignored.

Decided by names and shapes alone; what none of the rules here foresees is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from diffusion.model.matching import check_fit
from diffusion.model.pixart import PixArt
from diffusion.utils.errors import InputError

POSITIONS = {"pos_embed": "position grid of the latents", "y_pos_embed": "positions of the condition tokens"}
NULL_TOKENS = "y_embedder.y_embedding"


@dataclass
class Transfer:
    """What becomes of each tensor: those taken over, and by name why others are new in the network or ignored."""

    taken: dict[str, torch.Tensor] = field(default_factory=dict)
    remade: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    def format_table(self, own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> str:
        """Return a table for the log: names with the shapes in the weights and in the network, and the reasons."""
        values = sum(tensor.numel() for tensor in self.taken.values())
        lines = [f"taken over  {len(self.taken)} tensors of {values / 1e6:.2f} M values"]
        for kind, reasons in (("made anew", self.remade), ("ignored", self.ignored)):
            for name, reason in reasons.items():
                shapes = " -> ".join(
                    str(tuple(where[name].shape)) if name in where else "-" for where in (weights, own)
                )
                lines.append(f"{kind:<11} {name}  {shapes}  {reason}")
        return "\n".join(f"  {line}" for line in lines)


def plan_transfer(
    own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], ignore: Collection[str], source: str | Path
) -> Transfer:
    """Decide about each tensor of `weights`, from `source`, and of the network that they initialize, its `own`.

    Positions follow from the architecture; the null condition is new where the number of tokens is. ignore: names not
    to take over, whatever their shapes. Raises InputError naming what is missing, unknown, or of another shape.
    """
    unknown = sorted(set(ignore) - own.keys() - weights.keys())
    if unknown:
        raise InputError(f"ignore_keys {', '.join(unknown)}: neither the network nor {source} has such a tensor")
    transfer = Transfer()
    for name in {**own, **weights}:
        if name in POSITIONS:
            kind = transfer.remade if name in own else transfer.ignored
            kind[name] = POSITIONS[name] + ("" if name in own else ", which this network has none of")
        elif name in ignore:
            kind = transfer.remade if name in own else transfer.ignored
            kind[name] = "ignore_keys"
        elif name == NULL_TOKENS and _differ_in_number(own.get(name), weights.get(name)):
            transfer.remade[name] = "null condition, of another number of tokens"
        elif name in weights:
            transfer.taken[name] = weights[name]
    kept = {name: own[name] for name in transfer.remade}
    check_fit(own, transfer.taken | kept, source)
    return transfer


def transfer_weights(
    model: PixArt, weights: Mapping[str, torch.Tensor], ignore: Collection[str], source: str | Path
) -> str:
    """Load another network's weights into a new one, and return the table of what became of each tensor.

    Raises InputError as `plan_transfer` does.
    """
    own = model.state_dict()
    transfer = plan_transfer(own, weights, ignore, source)
    model.load_state_dict({**own, **transfer.taken})
    return transfer.format_table(own, weights)


def _differ_in_number(own: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Tell whether both are tokens (L, D) of one width that differ in number."""
    return own is not None and other is not None and own.shape[1:] == other.shape[1:] and len(own) != len(other)
