"""Embeddings of position, time and condition.

Letters: B batch, N image tokens, L condition tokens, D condition width, W network width.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from diffusion.model.blocks import Mlp


def sincos_frequencies(width: int) -> torch.Tensor:
    """Return radians per unit of the position grid, highest first, float64 (width / 4,); the same for both coordinates."""
    return 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))


def sincos_2d(width: int, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the sine-cosine embedding of a grid: (len(rows) * len(columns), width) float32, row-major.

    The column coordinate takes the first half of the width (as in MAE, whose grid is stored width first).
    Raises ValueError for a width that 4 does not divide.
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
    """Return the coordinates of `count` grid cells: g / (count / base) / interpolation + phase, float64.

    `base` cells span base / interpolation units; the three published stages all span 32 (PixArt-Sigma, section 3.3),
    which is what lets the weights of one stage start the next.
    """
    return torch.arange(count, dtype=torch.float64) * base / count / interpolation + phase


def image_positions(width: int, rows: int, columns: int, base: int, interpolation: float) -> torch.Tensor:
    """Return the positions of a grid of image tokens: (1, rows * columns, width)."""
    grid = [grid_positions(count, base, interpolation) for count in (rows, columns)]
    return sincos_2d(width, *grid)[None]


def token_grid(width: int, tokens: int, base: int, interpolation: float) -> torch.Tensor:
    """Return the positions of condition tokens, the centres of their windows on the image's scale: (1, tokens, width)."""
    positions = grid_positions(math.isqrt(tokens), base, interpolation, phase=base // tokens)
    return sincos_2d(width, positions, positions)[None]


class PatchEmbed(nn.Module):
    """The embedding of latents (B, C, H, W) as tokens (B, N, width), row-major: one linear map of every patch."""

    def __init__(self, patch_size: int, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # a sum with a transposed view is transposed, too: all blocks would read tokens across memory
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class TimestepEmbedder(nn.Module):
    """The embedding of timesteps (B,) as (B, W): 256 cosine and sine features, then a two-layer MLP."""

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
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


class ConditionEmbedder(nn.Module):
    """The projection of condition tokens (B, L, D) to (B, L, W), and the null condition that takes their place.

    The null tokens are random and never trained, but they belong to the weights: a network works with its own alone.
    """

    y_embedding: torch.Tensor

    def __init__(self, channels: int, width: int, dropout: float, tokens: int):
        super().__init__()
        self.dropout = dropout
        self.y_proj = Mlp(channels, width, width)
        self.register_buffer("y_embedding", torch.randn(tokens, channels) / channels**0.5)

    def drop(self, y: torch.Tensor, dropped: torch.Tensor | None = None) -> torch.Tensor:
        """Replace whole samples by the null condition (classifier-free guidance, Ho & Salimans 2022).

        dropped (B,) bool: which samples; None draws them in training, and otherwise replaces none.
        """
        if dropped is None:
            if not self.training or self.dropout == 0:
                return y
            dropped = torch.rand(y.shape[0], device=y.device) < self.dropout
        return torch.where(dropped[:, None, None], self.y_embedding.to(y.dtype), y)

    def forward(
        self, y: torch.Tensor, position: torch.Tensor | None = None, dropped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return (B, L, W) of tokens (B, L, D) and their positions (1, L, D); dropped: as in `drop`."""
        y = self.drop(y, dropped)
        return self.y_proj(y if position is None else y + position)
