"""PixArt: the diffusion transformer that PixCell trains (PixArt-Sigma, Chen et al. 2024, conditioned on patch embeddings).

Attribute names follow the published checkpoints, so that official weights load strictly.
Letters: B batch, C latent channels, H W sides of the latents, N image tokens, L condition tokens, D their width, W width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffusion.condition import Condition, uncontrolled_tokens
from diffusion.model.blocks import CrossAttention, FinalLayer, PixArtBlock
from diffusion.model.embed import ConditionEmbedder, PatchEmbed, TimestepEmbedder, image_positions, token_grid
from diffusion.model.pixart_config import PixArtConfig, preset_config
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import COMPILERS, find_compiler


def build_model(name: str, **kwargs: Any) -> PixArt:
    """Return the network of a preset; keyword arguments are PixArt's and win over the preset's.

    Raises InputError for an unknown preset, for arguments out of their range, and for a network that memory cannot hold.
    """
    config = preset_config(name, kwargs)
    try:
        return PixArt(config)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        sizes = f"depth {config.depth}, hidden_size {config.hidden_size}"
        raise InputError(f"a network of {sizes} does not fit into memory ({str(error).splitlines()[0]})") from None


class PixArt(nn.Module):
    """The network: it predicts noise, or velocity, and the noise's variance from noisy latents, timestep and condition.

    It takes a PixArtConfig, the fields of one as keyword arguments, or both, where the keywords win; `config` keeps them.
    Raises InputError for arguments out of their range.
    """

    pos_embed: torch.Tensor
    y_pos_embed: torch.Tensor | None

    def __init__(self, config: PixArtConfig | None = None, **arguments: Any):
        super().__init__()
        config = PixArtConfig(**arguments) if config is None else dataclasses.replace(config, **arguments)
        self.config, width = config, config.hidden_size
        self.grad_checkpointing = False

        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = ConditionEmbedder(
            config.caption_channels, width, config.class_dropout_prob, config.model_max_length
        )
        self.register_buffer("pos_embed", self.position_grid(config.base_size, config.base_size))
        self.register_buffer("y_pos_embed", self.token_grid() if config.use_cond_pos_embed else None)
        self.blocks = nn.ModuleList(
            PixArtBlock(width, config.num_heads, config.mlp_width, config.qk_norm, config.fp32_attention)
            for _ in range(config.depth)
        )
        self.final_layer = FinalLayer(width, config.patch_size**2 * config.out_channels)
        self.initialize_weights()

    @property
    def null_condition(self) -> torch.Tensor:
        """The condition of no patch, (L, D): random, never trained, and stored with the weights."""
        return self.y_embedder.y_embedding

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor | Condition,
        dropped: torch.Tensor | None = None,
        residuals: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Predict for network latents x (B, C, H, W), timestep (B,) in 0..999 and condition y: (B, 2C, H, W).

        y: tokens (B, L, D), or a Condition whose control, if it has one, has weight 0.

        dropped (B,) bool: which samples get the null condition; None draws them with class_dropout_prob in training.
        residuals: tensors (B, N, W) of a network beside this one; the i-th is added to the tokens after block i, and
        blocks beyond the last get none.

        The first C output channels are the noise (or velocity, as trained), the others place the noise's variance
        between the schedule's two bounds (Nichol & Dhariwal 2021). H and W are any multiples of the patch size.
        Raises ValueError for inputs of other shapes, for a control, and for more residuals than blocks.
        """
        tokens = uncontrolled_tokens(y)
        self._check_inputs(x, timestep, tokens)
        rows, columns = x.shape[2] // self.config.patch_size, x.shape[3] // self.config.patch_size
        x = self.x_embedder(x) + self._positions(rows, columns)  # (B, N, W)
        residuals = self._check_residuals(residuals, x.shape)
        time = self.t_embedder(timestep)  # (B, W)
        modulation = self.t_block(time).unflatten(1, (6, -1))  # (B, 6, W), shared by all blocks
        condition = self.y_embedder(tokens, self.y_pos_embed, dropped)  # (B, L, W)
        for i, block in enumerate(self.blocks):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, modulation, use_reentrant=False)
            else:
                x = block(x, condition, modulation)
            if i < len(residuals):
                x = x + residuals[i].to(x.dtype)
        return self.unpatchify(self.final_layer(x, time), rows, columns)

    def unpatchify(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Put tokens (B, rows * columns, p * p * C) where their patches were: (B, C, rows * p, columns * p)."""
        p, channels = self.config.patch_size, self.config.out_channels
        x = x.unflatten(1, (rows, columns)).unflatten(3, (p, p, channels))
        return torch.einsum("bhwpqc->bchpwq", x).reshape(x.shape[0], channels, rows * p, columns * p)

    def position_grid(self, rows: int, columns: int) -> torch.Tensor:
        """Return the positions of a grid of image tokens: (1, rows * columns, W)."""
        config = self.config
        return image_positions(config.hidden_size, rows, columns, config.base_size, config.pe_interpolation)

    def token_grid(self) -> torch.Tensor:
        """Return the positions of the condition tokens, (1, L, D). Raises InputError for tokens that make no square."""
        config = self.config
        if math.isqrt(config.model_max_length) ** 2 != config.model_max_length:
            raise InputError(f"use_cond_pos_embed: model_max_length {config.model_max_length} must be a square number")
        return token_grid(config.caption_channels, config.model_max_length, config.base_size, config.pe_interpolation)

    def initialize_weights(self) -> None:
        """Draw new weights: Xavier for linear maps, small normals around time and condition, zeros where a block ends."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        for part in (self.t_embedder.mlp, self.t_block, self.y_embedder.y_proj):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        last = [module.proj for module in self.modules() if isinstance(module, CrossAttention)]
        for linear in (*last, self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def compile_blocks(self) -> PixArt:
        """Compile the blocks in place, all with one graph. Raises InputError where no C++ compiler is found."""
        if find_compiler() is None:
            raise InputError(
                f"to compile the network takes a C++ compiler: none of {', '.join(COMPILERS)} is here; install one"
            )
        for block in self.blocks:
            block.compile()
        return self

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        if rows == columns == self.config.base_size:
            return self.pos_embed
        return self.position_grid(rows, columns).to(self.pos_embed)

    def _check_inputs(self, x: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor) -> None:
        channels, patch = self.config.in_channels, self.config.patch_size
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % patch or x.shape[3] % patch:
            raise ValueError(
                f"latents of shape {tuple(x.shape)}: expected (B, {channels}, H, W), H and W multiples of {patch}"
            )
        condition = (len(x), self.config.model_max_length, self.config.caption_channels)
        if tokens.shape != condition:
            raise ValueError(f"condition of shape {tuple(tokens.shape)}: expected {condition}")
        if timestep.shape != (len(x),):
            raise ValueError(f"timesteps of shape {tuple(timestep.shape)}: expected ({len(x)},)")

    def _check_residuals(self, residuals: Sequence[torch.Tensor] | None, shape: torch.Size) -> Sequence[torch.Tensor]:
        residuals = () if residuals is None else residuals
        if len(residuals) > len(self.blocks):
            raise ValueError(f"{len(residuals)} residuals: expected at most {len(self.blocks)}, one for each block")
        for residual in residuals:
            if residual.shape != shape:
                raise ValueError(f"residual of shape {tuple(residual.shape)}: expected {tuple(shape)}")
        return residuals
