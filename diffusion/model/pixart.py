"""PixArt: the diffusion transformer that PixCell trains (PixArt-Sigma, Chen et al. 2024, conditioned on patch embeddings).

Attribute names follow the published checkpoints, so that official weights load strictly.
Letters: B batch, C latent channels, H W sides of the latents, N image tokens, L condition tokens, D their width, W width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from diffusion.condition import Condition, uncontrolled_tokens
from diffusion.model.pixart_config import PixArtConfig, preset_config
from diffusion.model.student import Student
from diffusion.model.trunk import Embedded, Trunk
from diffusion.utils.errors import InputError


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


class PixArt(Trunk):
    """The network: it predicts noise, or velocity, and the noise's variance from noisy latents, timestep and condition.

    It takes a PixArtConfig, the fields of one as keyword arguments, or both, where the keywords win; `config` keeps them.
    Raises InputError for arguments out of their range.
    """

    def __init__(self, config: PixArtConfig | None = None, **arguments: Any):
        super().__init__(PixArtConfig(**arguments) if config is None else dataclasses.replace(config, **arguments))
        self.student: Student | None = None  # how it is sampled, where it was distilled
        self.student_adapter: str | None = None  # the adapter that made it a student, if one did

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor | Condition,
        dropped: torch.Tensor | None = None,
        residuals: Sequence[torch.Tensor] | None = None,
        target: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict for network latents x (B, C, H, W), timestep (B,) in 0..999 and condition y: (B, 2C, H, W).

        y: tokens (B, L, D), or a Condition whose control, if it has one, has weight 0.

        dropped (B,) bool: which samples get the null condition; None draws them with class_dropout_prob in training.
        residuals: tensors (B, N, W) of a network beside this one; the i-th is added to the tokens after block i, and
        blocks beyond the last get none. target (B,): the timestep to jump to, of a network of `use_target_timestep`.

        The first C output channels are the noise (or velocity, as trained), the others place the noise's variance
        between the schedule's two bounds (Nichol & Dhariwal 2021). H and W are any multiples of the patch size.
        Raises ValueError for inputs of other shapes, for a control, and for more residuals than blocks.
        """
        inputs = self.embed(x, timestep, uncontrolled_tokens(y), dropped, target)
        return self.predict(self.run_blocks(inputs, residuals), inputs, x.shape[2:])

    def run_blocks(self, inputs: Embedded, residuals: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return the tokens (B, N, W) behind the last block; residuals: as `forward` takes them."""
        tokens = inputs.x
        residuals = self._check_residuals(residuals, tokens.shape)
        for i in range(len(self.blocks)):
            tokens = self.run_block(i, tokens, inputs)
            if i < len(residuals):
                tokens = tokens + residuals[i].to(tokens.dtype)
        return tokens

    def predict(self, tokens: torch.Tensor, inputs: Embedded, cells: Sequence[int]) -> torch.Tensor:
        """Return what the final layer makes of tokens (B, N, W): (B, 2C, H, W); cells: H, W."""
        rows, columns = (side // self.config.patch_size for side in cells)
        return self.unpatchify(self.final_layer(tokens, inputs.time), rows, columns)

    def unpatchify(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Put tokens (B, rows * columns, p * p * C) where their patches were: (B, C, rows * p, columns * p)."""
        p, channels = self.config.patch_size, self.config.out_channels
        x = x.unflatten(1, (rows, columns)).unflatten(3, (p, p, channels))
        return torch.einsum("bhwpqc->bchpwq", x).reshape(x.shape[0], channels, rows * p, columns * p)

    def _check_residuals(self, residuals: Sequence[torch.Tensor] | None, shape: torch.Size) -> Sequence[torch.Tensor]:
        residuals = () if residuals is None else residuals
        if len(residuals) > len(self.blocks):
            raise ValueError(f"{len(residuals)} residuals: expected at most {len(self.blocks)}, one for each block")
        for residual in residuals:
            if residual.shape != shape:
                raise ValueError(f"residual of shape {tuple(residual.shape)}: expected {tuple(shape)}")
        return residuals
