"""Operations of the network, counted: a multiplication and an addition are two, elementwise work is none.

Letters: B samples, N image tokens, L condition tokens of width D, W width of the network, C channels, p patch size.
"""

from __future__ import annotations

from diffusion.model.blocks import folds
from diffusion.model.pixart import PixArt


def forward_operations(model: PixArt, batch: int, tokens: int) -> int:
    """Of a forward pass of `batch` samples of `tokens` image tokens; a backward pass takes twice as many.

    Cross-attention counts as it is run in float32: for one condition token without queries, for a few with folded maps.
    """
    width, length, heads = model.hidden_size, model.model_max_length, model.blocks[0].cross_attn.heads
    hidden = model.blocks[0].mlp.fc1.out_features
    linear = tokens * (4 * width + 2 * hidden) * width  # qkv and projection, MLP
    attention = 2 * tokens * tokens * width
    linear += length * 2 * width * width  # keys and values of the condition
    if length == 1:
        linear += width * width  # projection of one token
    elif folds(length, width // heads):
        linear += length * (2 * width + 1) * width + tokens * 2 * heads * length * width
    else:
        linear += tokens * 2 * width * width
        attention += 2 * tokens * length * width
    patch = model.patch_size**2 * (model.in_channels + model.out_channels)
    ends = tokens * patch * width + (model.t_embedder.features + width + 6 * width) * width
    ends += length * (model.caption_channels + width) * width
    return 2 * batch * (len(model.blocks) * (linear + attention) + ends)
