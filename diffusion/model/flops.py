"""Floating-point operations of the network, from its config alone: a multiplication and an addition are two.

Products of matrices and attention are counted, elementwise work is not. A backward pass takes two products for each of the
forward pass, one for the input's gradient and one for the weight's; what is computed again to save memory (checkpointing, and
the scores within attention's own backward pass) is no work of the model and does not count (PaLM, Chowdhery et al. 2022,
appendix B, which defines MFU by that).
Letters: N image tokens, L condition tokens of width D, W width of the network.
"""

from __future__ import annotations

from diffusion.model.embed import TimestepEmbedder
from diffusion.model.pixart_config import PixArtConfig


def forward_flops(config: PixArtConfig, tokens: int | None = None) -> int:
    """Return the operations of a forward pass of one sample; tokens: N, by default that of the training size.

    Of one condition token the queries, attention and projection of every image token are not run, and not counted.
    """
    count = config.base_size**2 if tokens is None else tokens
    width, length, hidden = config.hidden_size, config.model_max_length, config.mlp_width
    linear = count * (4 * width + 2 * hidden) * width  # qkv and projection, MLP
    attention = 2 * count * count * width
    if length > 1:
        linear += count * 2 * width * width + length * 2 * width * width
        attention += 2 * count * length * width
    else:
        linear += 3 * width * width  # keys and values, projection, of one token
    patch = config.patch_size**2 * config.out_channels
    ends = count * patch * width + (width + 6 * width) * width + length * width * width
    return 2 * (config.depth * (linear + attention) + ends) + _first_flops(config, count)


def training_flops(config: PixArtConfig, tokens: int | None = None) -> int:
    """Return the operations of a forward and a backward pass of one sample, all of the network being trained."""
    count = config.base_size**2 if tokens is None else tokens
    return 3 * forward_flops(config, count) - _first_flops(config, count)


def _first_flops(config: PixArtConfig, count: int) -> int:
    """Return those of the first products, of latents, timestep and condition, for which no gradient is computed."""
    latents = count * config.patch_size**2 * config.in_channels
    return (
        2
        * (latents + TimestepEmbedder.features + config.model_max_length * config.caption_channels)
        * config.hidden_size
    )
