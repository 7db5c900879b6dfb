"""Operations of the network, counted: a multiplication and an addition are two, elementwise work is none.

Letters: B samples, N image tokens, L condition tokens of width D, W width of the network, C channels, p patch size.
"""

from __future__ import annotations

from diffusion.model.blocks import PixArtBlock
from diffusion.model.pixart import PixArt


def typed_blocks(model: PixArt) -> list[PixArtBlock]:
    """Return the network's blocks, which a ModuleList has as modules of any kind."""
    return [block for block in model.blocks if isinstance(block, PixArtBlock)]


def forward_operations(model: PixArt, batch: int, tokens: int) -> int:
    """Return those of a forward pass of `batch` samples of `tokens` image tokens; a backward pass takes twice as many.

    Of one condition token the queries, attention and projection of every image token are not run, and not counted.
    """
    width, length = model.config.hidden_size, model.config.model_max_length
    hidden = typed_blocks(model)[0].mlp.fc1.out_features
    linear = tokens * (4 * width + 2 * hidden) * width  # qkv and projection, MLP
    attention = 2 * tokens * tokens * width
    if length > 1:
        linear += tokens * 2 * width * width + length * 2 * width * width
        attention += 2 * tokens * length * width
    else:
        linear += 3 * width * width  # keys and values, projection, of one token
    patch = model.config.patch_size**2 * (model.config.in_channels + model.config.out_channels)
    ends = tokens * patch * width + (model.t_embedder.features + width + 6 * width) * width
    ends += length * (model.config.caption_channels + width) * width
    return 2 * batch * (len(model.blocks) * (linear + attention) + ends)
