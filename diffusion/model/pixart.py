"""PixArt: the diffusion transformer that PixCell trains (PixArt-Sigma, Chen et al. 2024, conditioned on patch embeddings).

Attribute names follow the published checkpoints, so that official weights load strictly.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import shutil
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffusion.model.blocks import FinalLayer, PixArtBlock
from diffusion.model.embed import ConditionEmbedder, PatchEmbed, TimestepEmbedder, grid_positions, sincos_2d, token_grid
from diffusion.utils.errors import InputError
from diffusion.utils.values import Count, Positive, Range, convert, hints_of

COMPILERS = ("g++", "gcc", "clang++", "clang", "cl")
PRESETS = {
    "PixArt_XL_2_UNI": dict(depth=28, hidden_size=1152, num_heads=16),  # the published network, 608 M parameters
    "PixArt_L_2_UNI": dict(depth=24, hidden_size=1024, num_heads=16),
    "PixArt_B_2_UNI": dict(depth=12, hidden_size=768, num_heads=12),
    "PixArt_S_2_UNI": dict(depth=12, hidden_size=384, num_heads=6),
    "PixArt_Ti_2_UNI": dict(depth=6, hidden_size=192, num_heads=3),  # trains on a laptop's CPU
}


def build_model(name: str, **kwargs) -> PixArt:
    """The network of a preset; keyword arguments are PixArt's and win over the preset's.

    Raises InputError for an unknown preset, for arguments out of their range, and for a network that memory cannot hold.
    """
    if name not in PRESETS:
        raise InputError(f"no model preset {name!r}; known are {', '.join(PRESETS)}")
    arguments = check_arguments({**PRESETS[name], **kwargs}, "PixArt's ")
    try:
        return PixArt(**arguments)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        sizes = ", ".join(f"{size} {arguments[size]}" for size in ("depth", "hidden_size"))
        raise InputError(f"a network of {sizes} does not fit into memory ({str(error).splitlines()[0]})") from None


def check_arguments(arguments: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return PixArt arguments if there are such, each of its type and in its range; prefix: what messages call them by.

    Raises InputError.
    """
    known = inspect.signature(PixArt).parameters
    for argument in arguments:
        if argument not in known:
            near = difflib.get_close_matches(str(argument), known, n=1, cutoff=0)[0]
            raise InputError(f"PixArt has no argument {argument!r}; the nearest is {near!r}")
    hints = hints_of(PixArt.__init__)
    return {name: convert(value, hints[name], f"{prefix}{name}") for name, value in arguments.items()}


class PixArt(nn.Module):
    """Predicts noise, or velocity, and the interpolation of the noise's variance from noisy latents, timestep and tokens.

    input_size: side of the training latents (32 for 256 pixels); pe_interpolation sets the scale of its position grid.
    model_max_length: condition tokens L, one per 256-pixel window; caption_channels: their width D.
    use_cond_pos_embed: give the tokens the positions of their windows (stages with L > 1).
    fp32_attention: attention outside autocast, in float32.
    """

    def __init__(
        self,
        input_size: Count = 32,
        patch_size: Count = 2,
        in_channels: Count = 16,
        hidden_size: Count = 1152,
        depth: Annotated[int, Range(least=1, most=1024)] = 28,
        num_heads: Count = 16,
        mlp_ratio: Positive = 4.0,
        class_dropout_prob: Annotated[float, Range(least=0, most=1)] = 0.1,
        pred_sigma: bool = True,
        caption_channels: Count = 1536,
        model_max_length: Count = 1,
        pe_interpolation: Positive = 1.0,
        use_cond_pos_embed: bool = False,
        qk_norm: bool = False,
        fp32_attention: bool = False,
    ):
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads or hidden_size % 4:
            raise InputError(f"hidden_size {hidden_size} must be a multiple of num_heads {num_heads}, and of 4")
        if not 1 <= hidden_size * mlp_ratio < 2**24:
            raise InputError(f"mlp_ratio {mlp_ratio} makes {hidden_size * mlp_ratio:g} hidden units of {hidden_size}")
        if use_cond_pos_embed and caption_channels % 4:
            raise InputError(f"use_cond_pos_embed: caption_channels {caption_channels} must be a multiple of 4")
        if input_size % patch_size:
            raise InputError(f"input_size {input_size} must be a multiple of patch_size {patch_size}")
        self.in_channels, self.out_channels = in_channels, in_channels * (2 if pred_sigma else 1)
        self.patch_size, self.hidden_size = patch_size, hidden_size
        self.caption_channels, self.model_max_length = caption_channels, model_max_length
        self.base_size, self.pe_interpolation = input_size // patch_size, pe_interpolation
        self.grad_checkpointing = False

        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = ConditionEmbedder(caption_channels, hidden_size, class_dropout_prob, model_max_length)
        self.register_buffer("pos_embed", self.position_grid(self.base_size, self.base_size))
        self.register_buffer("y_pos_embed", self.token_grid() if use_cond_pos_embed else None)
        self.blocks = nn.ModuleList(
            PixArtBlock(hidden_size, num_heads, mlp_ratio, qk_norm, fp32_attention) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)
        self.initialize_weights()

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor, dropped: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (B, C, H, W) network latents, timestep (B,) in 0..999, y (B, L, D) -> (B, 2C, H, W).

        dropped (B,) bool: which samples get the null condition; None draws them with class_dropout_prob in training.

        The first C output channels are the noise (or velocity, as trained), the others place the noise's variance
        between the schedule's two bounds (Nichol & Dhariwal 2021). H and W are any multiples of the patch size.
        Raises ValueError for inputs of other shapes.
        """
        self._check_inputs(x, timestep, y)
        rows, columns = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        x = self.x_embedder(x) + self._positions(rows, columns)  # (B, N, W)
        time = self.t_embedder(timestep)  # (B, W)
        modulation = self.t_block(time).unflatten(1, (6, -1))  # (B, 6, W), shared by all blocks
        y = self.y_embedder(y, self.y_pos_embed, dropped)  # (B, L, W)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, y, modulation, use_reentrant=False)
            else:
                x = block(x, y, modulation)
        return self.unpatchify(self.final_layer(x, time), rows, columns)

    def unpatchify(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Tokens (B, rows * columns, p * p * C) -> (B, C, rows * p, columns * p)."""
        p = self.patch_size
        x = x.unflatten(1, (rows, columns)).unflatten(3, (p, p, self.out_channels))
        return torch.einsum("bhwpqc->bchpwq", x).reshape(x.shape[0], self.out_channels, rows * p, columns * p)

    def position_grid(self, rows: int, columns: int) -> torch.Tensor:
        """Positions of a grid of image tokens: (1, rows * columns, W)."""
        grid = [grid_positions(count, self.base_size, self.pe_interpolation) for count in (rows, columns)]
        return sincos_2d(self.hidden_size, *grid)[None]

    def token_grid(self) -> torch.Tensor:
        """Positions of the condition tokens, (1, L, D). Raises InputError for tokens that make no square."""
        if math.isqrt(self.model_max_length) ** 2 != self.model_max_length:
            raise InputError(f"use_cond_pos_embed: model_max_length {self.model_max_length} must be a square number")
        return token_grid(self.caption_channels, self.model_max_length, self.base_size, self.pe_interpolation)

    def initialize_weights(self) -> None:
        """Xavier for linear maps, small normals around time and condition, zeros where a block or the network ends."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        time, condition = self.t_embedder.mlp, self.y_embedder.y_proj
        for linear in (time[0], time[2], self.t_block[1], condition.fc1, condition.fc2):
            nn.init.normal_(linear.weight, std=0.02)
        for linear in (*(block.cross_attn.proj for block in self.blocks), self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def compile_blocks(self) -> PixArt:
        """torch.compile, in place; one graph serves all blocks. Raises InputError where no compiler is found for its code."""
        named = [name for variable in ("CXX", "CC") if (name := os.environ.get(variable))]
        if not any(shutil.which(name) for name in (*named, *COMPILERS)):
            raise InputError(
                f"to compile the network takes a C++ compiler: none of {', '.join(COMPILERS)} is here; install one"
            )
        for block in self.blocks:
            block.compile()
        return self

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        if rows == columns == self.base_size:
            return self.pos_embed
        return self.position_grid(rows, columns).to(self.pos_embed)

    def _check_inputs(self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor) -> None:
        if (
            x.ndim != 4
            or x.shape[1] != self.in_channels
            or x.shape[2] % self.patch_size
            or x.shape[3] % self.patch_size
        ):
            raise ValueError(
                f"latents of shape {tuple(x.shape)}: expected (B, {self.in_channels}, H, W), H and W multiples of {self.patch_size}"
            )
        if y.shape != (len(x), self.model_max_length, self.caption_channels):
            raise ValueError(
                f"condition of shape {tuple(y.shape)}: expected ({len(x)}, {self.model_max_length}, {self.caption_channels})"
            )
        if timestep.shape != (len(x),):
            raise ValueError(f"timesteps of shape {tuple(timestep.shape)}: expected ({len(x)},)")
