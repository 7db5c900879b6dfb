"""An initialization of self-attention in which every head attends to one neighbour.

The heads of a new network attend to all tokens equally, and a small network in a short training spends most of it on
learning what is near. Here, after Zheng et al. 2024 ("Structured Initialization for Attention in Vision Transformers"),
heads begin as convolutions with a single impulse: queries and keys read the dimensions of the position embedding.
Nothing keeps training from leaving this.
"""

from __future__ import annotations

import torch

from diffusion.model.blocks import SelfAttention
from diffusion.model.embed import sincos_frequencies
from diffusion.model.pixart import PixArt
from diffusion.utils.errors import InputError

NEIGHBOURS = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))  # (rows, columns)
# Half to three quarters of a head's attention goes to its neighbour, for 256-pixel images (pe_interpolation 0.5) and heads
# of width 32 to 72; a sixth to a quarter at 512 pixels, where cells lie closer, and little at 1024.
SHARPNESS = 2.0


@torch.no_grad()
def init_local_attention(model: PixArt) -> None:
    """Set the queries and keys of a new network; head after head takes the next of the eight neighbours.

    A head of width E reads E/4 sines and E/4 cosines of either coordinate: keys have them as they are, queries rotated
    by the neighbour's offset, so that their product peaks there. The patch embedding leaves these dimensions to the
    position; what the first blocks write there is small at first. Raises InputError for a network without qk_norm,
    which sets the scale, or with an E that 4 does not divide.
    """
    width, step = (
        model.config.hidden_size,
        1 / model.config.pe_interpolation,
    )  # units of the position grid from cell to cell
    heads = model.config.num_heads
    count, rest = divmod(width // heads, 4)
    if rest or not model.config.qk_norm:
        raise InputError("local_start needs qk_norm=True and a hidden_size that 4 * num_heads divides")
    frequencies = sincos_frequencies(width)
    # the lower two thirds hardly change over a picture
    chosen = torch.linspace(0, len(frequencies) / 3 - 1, count).round().long()
    sines = {"column": chosen, "row": chosen + width // 2}  # where sincos_2d puts them; cosines a quarter further

    for axis in sines.values():
        for dimensions in (axis, axis + width // 4):
            for parameter in model.x_embedder.proj.parameters():
                parameter[dimensions] = 0
    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    for block_number, attention in enumerate(attentions):
        query, key, _ = attention.qkv.weight.chunk(3)
        query.zero_()
        key.zero_()
        if isinstance(attention.q_norm, torch.nn.LayerNorm):  # as checked above
            attention.q_norm.weight.fill_(SHARPNESS)
        for head in range(heads):
            rows, columns = NEIGHBOURS[(block_number * heads + head) % len(NEIGHBOURS)]
            first = head * 4 * count
            for axis, offset in (("column", columns), ("row", rows)):
                sine, cosine = sines[axis], sines[axis] + width // 4
                to_sine = first + torch.arange(count)
                to_cosine = to_sine + count
                angle = (frequencies[chosen] * offset * step).float()
                key[to_sine, sine] = 1.0
                key[to_cosine, cosine] = 1.0
                query[to_sine, sine], query[to_sine, cosine] = angle.cos(), angle.sin()
                query[to_cosine, cosine], query[to_cosine, sine] = angle.cos(), -angle.sin()
                first += 2 * count
