"""What PixArt and the ControlNet beside it have in common: embeddings of latents, time and condition, and blocks.

Attribute names follow the published checkpoints, so that official weights load strictly.
Letters: B batch, C latent channels, H W sides of the latents, N image tokens, L condition tokens, D their width, W width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffusion.model.blocks import CrossAttention, FinalLayer, PixArtBlock
from diffusion.model.embed import ConditionEmbedder, PatchEmbed, TimestepEmbedder, image_positions, token_grid
from diffusion.model.pixart_config import PixArtConfig
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import COMPILERS, find_compiler

if TYPE_CHECKING:
    from typing_extensions import Self


class Embedded(NamedTuple):
    """What the blocks are given: image tokens x (B, N, W), condition (B, L, W), modulation (B, 6, W); and time (B, W)."""

    x: torch.Tensor
    condition: torch.Tensor
    modulation: torch.Tensor
    time: torch.Tensor


class Trunk(nn.Module):
    """The tensors of a PixArt network, and the way through its embeddings and blocks; subclasses say what comes of it.

    Raises InputError for arguments out of their range.
    """

    pos_embed: torch.Tensor
    y_pos_embed: torch.Tensor | None

    def __init__(self, config: PixArtConfig):
        super().__init__()
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
        self.target_embedder = TimestepEmbedder(width) if config.use_target_timestep else None
        self.initialize_weights()

    @property
    def null_condition(self) -> torch.Tensor:
        """Return the condition of no patch, (L, D): random, never trained, and stored with the weights."""
        return self.y_embedder.y_embedding

    def embed(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        tokens: torch.Tensor,
        dropped: torch.Tensor | None = None,
        target: torch.Tensor | None = None,
    ) -> Embedded:
        """Embed latents x (B, C, H, W), timestep (B,) in 0..999 and condition tokens (B, L, D).

        dropped (B,) bool: which samples get the null condition; None draws them with class_dropout_prob in training.
        target (B,) in 0..999: the timestep to jump to, of a network that is told it.
        Raises ValueError for inputs of other shapes, for a target that is missing, and for one that is not used.
        """
        self._check_inputs(x, timestep, tokens)
        rows, columns = x.shape[2] // self.config.patch_size, x.shape[3] // self.config.patch_size
        x = self.x_embedder(x) + self.positions(rows, columns)
        time = self.t_embedder(timestep)
        if self.target_embedder is not None and target is not None:
            time = time + self.target_embedder(target)
        elif (self.target_embedder is None) != (target is None):
            raise ValueError("a target timestep goes with a network of use_target_timestep, and with no other")
        modulation = self.t_block(time).unflatten(1, (6, -1))  # shared by all blocks
        return Embedded(x, self.y_embedder(tokens, self.y_pos_embed, dropped), modulation, time)

    def run_block(self, number: int, x: torch.Tensor, inputs: Embedded) -> torch.Tensor:
        """Return the tokens (B, N, W) behind a block, recomputed in the backward pass where `grad_checkpointing` says so."""
        block = self.blocks[number]
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, inputs.condition, inputs.modulation, use_reentrant=False)  # type: ignore[return-value]
        return block(x, inputs.condition, inputs.modulation)

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

    def compile_blocks(self) -> Self:
        """Compile the blocks in place, all with one graph. Raises InputError where no C++ compiler is found."""
        if find_compiler() is None:
            raise InputError(
                f"to compile the network takes a C++ compiler: none of {', '.join(COMPILERS)} is here; install one"
            )
        for block in self.blocks:
            block.compile()
        return self

    def positions(self, rows: int, columns: int) -> torch.Tensor:
        """Return the positions of a grid of image tokens in the type of the weights, (1, rows * columns, W)."""
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
