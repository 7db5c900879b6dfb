"""The transformer block of PixArt (Chen et al. 2023, figure 4) with adaLN-single modulation.

Letters: B batch, N image tokens, L condition tokens, W width, H heads, E head width (W = H * E).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return x (B, N, W) scaled and shifted by (B, 1, W), in one pass over it."""
    return torch.addcmul(shift, x, 1 + scale)


def layer_norm(width: int) -> nn.LayerNorm:
    """Return the norm before every modulation, without weights of its own: the modulation brings them."""
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, in_fp32: bool) -> torch.Tensor:
    """Compute scaled dot-product attention of q (B, N, H, E) over k, v (B, M, H, E): (B, N, H * E)."""
    dtype = q.dtype
    if in_fp32:  # fp16 scores overflow in deep networks; bf16 ones lose the small differences
        q, k, v = q.float(), k.float(), v.float()
    with torch.autocast(q.device.type, enabled=False):
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2).flatten(2).to(dtype)


class Mlp(nn.Module):
    """A linear map, a tanh-approximated GELU, and another linear map."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int):
        super().__init__()
        self.fc1 = nn.Linear(in_width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SelfAttention(nn.Module):
    """Attention among the image tokens (B, N, W); qk_norm is a LayerNorm over the whole width, before the split into heads."""

    def __init__(self, width: int, heads: int, qk_norm: bool, in_fp32: bool):
        super().__init__()
        self.heads, self.in_fp32 = heads, in_fp32
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, N, W) each
        # under autocast a LayerNorm returns fp32; attention takes one dtype for all three
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))  # (B, N, H, E)
        return self.proj(attend(q, k, v, self.in_fp32))


class CrossAttention(nn.Module):
    """Attention of the image tokens (B, N, W) over the condition tokens (B, L, W)."""

    def __init__(self, width: int, heads: int, in_fp32: bool):
        super().__init__()
        self.heads, self.in_fp32 = heads, in_fp32
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (B, N, W), or for one condition token (B, 1, W), since it is the same for every image token."""
        k, v = self.kv_linear(y).chunk(2, dim=-1)  # (B, L, W) each
        if y.shape[1] == 1:  # the softmax over one key is 1, whatever the query: a seventh of a block's linear maps
            return self.proj(_WithZeroGradients.apply(v, *self.q_linear.parameters()))
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (self.q_linear(x), k, v))
        return self.proj(attend(q, k, v, self.in_fp32))


class _WithZeroGradients(torch.autograd.Function):
    """The identity of x, with zero gradients for parameters that it does not depend on.

    Optimizers then decay these parameters as usual, and DDP finds a gradient for each of them.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parameters: nn.Parameter) -> torch.Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return *gradients, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


class PixArtBlock(nn.Module):
    """A block: modulated self-attention, plain cross-attention (no norm, no gate), modulated MLP."""

    def __init__(self, width: int, heads: int, mlp_width: int, qk_norm: bool, fp32_attention: bool):
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads, qk_norm, fp32_attention)
        self.cross_attn = CrossAttention(width, heads, fp32_attention)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, mlp_width, width)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: torch.Tensor, y: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, N, W) for x (B, N, W), condition y (B, L, W) and modulation (B, 6, W)."""
        table = self.scale_shift_table + modulation
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)  # (B, 1, W) each
        x = torch.addcmul(x, gate_attn, self.attn(modulate(self.norm1(x), shift_attn, scale_attn)))
        x = x + self.cross_attn(x, y)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class FinalLayer(nn.Module):
    """The modulated norm and the projection of every token to its patch of outputs.

    It is modulated by the embedding of time itself, not by t_block as the blocks are.
    """

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm_final = layer_norm(width)
        self.linear = nn.Linear(width, outputs)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, dim=1)  # (B, 1, W) each
        return self.linear(modulate(self.norm_final(x), shift, scale))
