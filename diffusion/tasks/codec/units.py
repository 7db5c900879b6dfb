"""The units of a trained codec's latents: principal components of tissue, folded into the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusion.formats import LATENT_CHANNELS
from diffusion.tasks.codec.images import tissue_tiles

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

TILES_OF_A_REGION = 8  # of each image, for the latents' statistics


@torch.no_grad()
def change_units(vae: AutoencoderKL, regions: list[np.ndarray]) -> None:
    """Fold a linear map of the latents into the weights: the channels become principal components of the pixels.

    They are those of the training tissue, the strongest (brightness) first. A channel's standard deviation is the square
    root of its effect on pixels: a diffusion model learns first what is seen most, and the noise that leaves brightness
    legible does not drown the detail, as it would at the full ratio of 26 to 1 between first and last channel.
    All 16 together get mean 0 and variance 1, so that the scale and shift of config.json are 1 and 0. The mean is
    exact but for the decoder's zero padding at a picture's edge; the posterior's variance becomes one of each channel.
    """
    tiles = [tile.to(vae.device) for region in regions for tile in tissue_tiles(region)[:TILES_OF_A_REGION]]
    posteriors = [
        vae.encode(tile).latent_dist  # pyright: ignore[reportAttributeAccessIssue] - a tuple only where asked for
        for tile in tiles
    ]
    channels = torch.cat([each.mean for each in posteriors]).transpose(0, 1).flatten(1).double()  # (16, positions)
    variance = torch.cat([each.var for each in posteriors]).double().mean(dim=(0, 2, 3))
    mean, covariance = channels.mean(dim=1), torch.cov(channels)
    to_pixels = square_root(torch.stack([sensitivity(vae, each.mean) for each in posteriors]).mean(dim=0))
    spectrum, axes = torch.linalg.eigh(to_pixels @ covariance @ to_pixels)
    spectrum, axes = spectrum.flip(0), axes.flip(1)  # strongest first
    variances = spectrum.sqrt() / spectrum.sqrt().mean()
    forward = (variances / spectrum).sqrt()[:, None] * axes.T @ to_pixels
    backward = torch.linalg.inv(forward)

    head, stem, count = vae.encoder.conv_out, vae.decoder.conv_in, LATENT_CHANNELS
    assert head.bias is not None and stem.bias is not None  # as all of the network's convolutions have
    stem.bias += torch.einsum("oihw,i->o", stem.weight.double(), mean).float()
    stem.weight.copy_(torch.einsum("oihw,ij->ojhw", stem.weight.double(), backward))
    head.weight[:count] = torch.einsum("ij,jchw->ichw", forward, head.weight[:count].double()).float()
    head.bias[:count] = (forward @ (head.bias[:count].double() - mean)).float()
    head.weight[count:] = 0  # a sum of independent channels keeps no variance of its own for every position
    head.bias[count:] = (forward.square() @ variance).log().float()
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)


def sensitivity(vae: AutoencoderKL, latents: torch.Tensor, step: float = 0.05, spacing: int = 4) -> torch.Tensor:
    """Measure how pixels answer to the channels at one position: the Gram matrix (16, 16) of the decoder's derivatives.

    Latents (1, 16, h, w) are moved at every fourth position at once, far enough apart to answer singly.
    """
    decoded, answers = decode(vae, latents), []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel, 1::spacing, 1::spacing] += step
        answers.append((decode(vae, moved) - decoded).flatten().double() / step)
    positions = latents[0, 0, 1::spacing, 1::spacing].numel()
    return torch.stack(answers) @ torch.stack(answers).T / positions


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents (B, 16, h, w) to pixels (B, 3, 8h, 8w)."""
    decoded: Any = vae.decode(latents)  # pyright: ignore[reportArgumentType] - any float tensor will do
    return decoded.sample


def square_root(matrix: torch.Tensor) -> torch.Tensor:
    """Return the square root of a symmetric, positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
