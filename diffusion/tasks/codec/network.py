"""The small codec's network: an AutoencoderKL with 16 channels at an eighth of the resolution."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diffusion.formats import LATENT_CHANNELS
from diffusion.tasks.codec.images import TILE

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

INITIAL_STD = 0.05  # of the posterior


class CodecNetwork(nn.Module):
    """A VAE as one module to train: pixels and noise in, decoded pixels and the posterior out.

    Always in eval mode: there is no dropout, and diffusers' train mode only adds copies.
    """

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        # Any: diffusers mistypes encode and decode, and hides torch's overloads of `to` behind a decorator
        self.vae: Any = vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.eval()

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode, sample and decode.

        pixels (B, 3, S, S) in [-1, 1], noise (B, 16, S/8, S/8) -> decoded pixels; posterior mean and log-variance.
        """
        posterior = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return decoded, posterior.mean, posterior.logvar

    def train(self, mode: bool = True) -> CodecNetwork:
        """Stay in eval mode."""
        return super().train(False)


def build_vae() -> AutoencoderKL:
    """Build the untrained network, with a posterior as narrow as it will become: with std 1 it learns little at first."""
    from diffusers import AutoencoderKL

    arguments: dict[str, Any] = dict(  # diffusers types those of blocks as tuples of one
        # Few channels at full resolution, where the time goes; many at an eighth, where the weights go.
        block_out_channels=(16, 32, 96, 112),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        # One group: the statistics of all channels together depend least on what a picture shows and how large it is.
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=TILE,
    )
    vae = AutoencoderKL(**arguments)
    bias = vae.encoder.conv_out.bias
    assert bias is not None  # as all of its convolutions have
    nn.init.constant_(bias[LATENT_CHANNELS:], 2 * math.log(INITIAL_STD))
    return vae


def save_codec(vae: AutoencoderKL, folder: Path) -> None:
    """Write the diffusers folder in float16, atomically."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    vae.half().save_pretrained(part, safe_serialization=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)
