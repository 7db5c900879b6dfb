"""The initialization of attention at neighbours."""

from __future__ import annotations

import pytest
import torch

from diffusion.model import PixArt
from diffusion.model.blocks import SelfAttention
from diffusion.model.local_attention_init import NEIGHBOURS, init_local_attention
from diffusion.utils.errors import InputError

SMALL = dict(input_size=16, hidden_size=32, depth=2, num_heads=4, caption_channels=12, model_max_length=4)


@torch.no_grad()
@pytest.mark.parametrize("timestep", [100, 900])
def test_a_local_start_looks_at_neighbours(timestep):
    """In the network at work, on noise: each head's strongest look, away from the border, is at the neighbour meant for it."""
    arguments = {**SMALL, "input_size": 32, "hidden_size": 192, "depth": 3, "num_heads": 6}
    model = PixArt(**arguments, pe_interpolation=0.5, qk_norm=True).eval()
    init_local_attention(model)
    looks = []

    def look(attention: SelfAttention, inputs: tuple[torch.Tensor]) -> None:
        q, k, _ = attention.qkv(inputs[0]).chunk(3, dim=-1)
        q, k = (part.unflatten(-1, (6, -1)).transpose(1, 2) for part in (attention.q_norm(q), attention.k_norm(k)))
        weights = (q @ k.mT / 32**0.5).softmax(-1).mean(0)  # (heads, 256, 256)
        looks.append(weights.unflatten(1, (16, 16)).unflatten(3, (16, 16))[:, 8, 8])  # from one cell

    for block in model.blocks:
        block.attn.register_forward_pre_hook(look)
    model(torch.randn(8, 16, 32, 32), torch.full((8,), timestep), torch.randn(8, 4, 12))
    assert len(looks) == 3
    for number, from_cell in enumerate(looks):
        for head in range(6):
            rows, columns = NEIGHBOURS[(6 * number + head) % 8]
            assert divmod(from_cell[head].argmax().item(), 16) == (8 + rows, 8 + columns)
            assert from_cell[head].max() > 0.4 and from_cell[head, 6:11, 6:11].sum() > 0.7
    for wrong in (dict(qk_norm=False), dict(num_heads=32)):
        with pytest.raises(InputError, match="local_start needs"):
            init_local_attention(PixArt(**{**arguments, "qk_norm": True, **wrong}))
