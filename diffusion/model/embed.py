"""Embeddings of position, time and condition.

Letters: B batch, N image tokens, L condition tokens, D condition width, W network width.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from diffusion.model.blocks import Mlp


def sincos_frequencies(width: int) -> torch.Tensor:
    """Radians per unit of the position grid, highest first, in float64 (width / 4,); the same for both coordinates."""
    return 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))


def sincos_2d(width: int, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Sine-cosine embedding of a grid: (len(rows) * len(columns), width) float32, row-major.

    The column coordinate takes the first half of the width (as in MAE, whose grid is stored width first).
    """
    if width % 4:
        raise ValueError(f"width {width} must be a multiple of 4: sine and cosine of two coordinates")
    row, column = torch.meshgrid(rows.double(), columns.double(), indexing="ij")
    frequencies = sincos_frequencies(width)
    halves = []
    for coordinate in (column, row):
        angles = coordinate.reshape(-1, 1) * frequencies
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=1).float()


def grid_positions(count: int, base: int, interpolation: float, phase: float = 0.0) -> torch.Tensor:
    """Coordinates of `count` grid cells: g / (count / base) / interpolation + phase.

    `base` cells span base / interpolation units; the three published stages all span 32 (PixArt-Sigma, section 3.3),
    which is what lets the weights of one stage start the next.
    """
    return torch.arange(count, dtype=torch.float64) * base / count / interpolation + phase


def image_positions(width: int, rows: int, columns: int, base: int, interpolation: float) -> torch.Tensor:
    """Return the positions of a grid of image tokens: (1, rows * columns, width)."""
    grid = [grid_positions(count, base, interpolation) for count in (rows, columns)]
    return sincos_2d(width, *grid)[None]


def token_grid(width: int, tokens: int, base: int, interpolation: float) -> torch.Tensor:
    """Positions of condition tokens at the centres of their windows, on the image's scale: (1, tokens, width)."""
    positions = grid_positions(math.isqrt(tokens), base, interpolation, phase=base // tokens)
    return sincos_2d(width, positions, positions)[None]


class PatchEmbed(nn.Module):
    """Latents (B, C, H, W) -> tokens (B, N, width), row-major."""

    def __init__(self, patch_size: int, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # every sum with a transposed view would be one, too: all blocks would read tokens across memory
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class TimestepEmbedder(nn.Module):
    """Timesteps (B,) -> (B, W): 256 cosine and sine features, then a two-layer MLP."""

    features = 256

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        half = self.features // 2
        frequencies = torch.exp(
            torch.arange(half, device=timestep.device, dtype=torch.float32) * (-math.log(10000) / half)
        )
        angles = timestep.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.mlp[0].weight.dtype))


class ConditionEmbedder(nn.Module):
    """Condition tokens (B, L, D) -> (B, L, W), and the null condition that takes their place without guidance.

    The null tokens are random and never trained, but they belong to the weights: a network only knows its own.
    """

    def __init__(self, channels: int, width: int, dropout: float, tokens: int):
        super().__init__()
        self.dropout = dropout
        self.y_proj = Mlp(channels, width, width)
        self.register_buffer("y_embedding", torch.randn(tokens, channels) / channels**0.5)

    def drop(self, y: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
        """Replace whole samples by the null condition (classifier-free guidance, Ho & Salimans 2022).

        dropped: which, (B,) bool; None draws them in training, and is none of them else.
        """
        if dropped is None:
            if not self.training or self.dropout == 0:
                return y
            dropped = torch.rand(y.shape[0], device=y.device) < self.dropout
        return torch.where(dropped[:, None, None], self.y_embedding.to(y.dtype), y)

    def forward(
        self, y: torch.Tensor, position: torch.Tensor | None = None, dropped: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = self.drop(y, dropped)
        return self.y_proj(y if position is None else y + position)
