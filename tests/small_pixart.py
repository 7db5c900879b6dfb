"""A small transformer of an odd shape, whose weights tests write and read in every format."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from diffusion.model.pixart import PixArt

ARGUMENTS = dict(
    input_size=64, hidden_size=48, depth=3, num_heads=4, caption_channels=20, model_max_length=4,
    pe_interpolation=1.0, use_cond_pos_embed=True, qk_norm=True, mlp_ratio=2.0,
)  # fmt: skip


def build_small_pixart() -> PixArt:
    """Build the network, with the same weights every time."""
    torch.manual_seed(0)
    return PixArt(**ARGUMENTS)


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts have the same names and values, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
