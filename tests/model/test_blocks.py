"""Parts of a block against naive forms."""

from __future__ import annotations

import torch

from diffusion.model.blocks import CrossAttention, SelfAttention

SMALL = dict(input_size=16, hidden_size=32, depth=2, num_heads=4, caption_channels=12, model_max_length=4)


@torch.no_grad()
def test_attention_is_the_formula_with_norms_over_the_whole_width():
    torch.manual_seed(0)
    attention = SelfAttention(12, heads=3, qk_norm=True, in_fp32=False)
    torch.nn.init.normal_(attention.q_norm.weight)
    x = torch.randn(1, 5, 12)
    q, k, v = attention.qkv(x)[0].split(12, dim=1)
    q, k = attention.q_norm(q), attention.k_norm(k)
    heads = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        weights = (q[:, part] @ k[:, part].T / 2).softmax(dim=1)
        heads.append(weights @ v[:, part])
    torch.testing.assert_close(attention(x)[0], attention.proj(torch.cat(heads, dim=1)))


def test_one_condition_token_needs_no_query():
    """The shortcut for L = 1 gives what attention over one key gives, in values and gradients."""
    torch.manual_seed(0)
    cross = CrossAttention(32, 4, in_fp32=False)
    x, y = torch.randn(2, 9, 32, requires_grad=True), torch.randn(2, 1, 32, requires_grad=True)
    short = cross(x, y)
    long = cross(x, torch.cat([y, y], dim=1))  # two equal keys share what one has
    torch.testing.assert_close(short.expand_as(long), long)
    parameters = [*cross.parameters(), y]
    of_short, of_long = (torch.autograd.grad(out.expand(2, 9, 32).square().sum(), parameters) for out in (short, long))
    for one, other in zip(of_short, of_long, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for name, gradient in zip([name for name, _ in cross.named_parameters()], of_short[:-1], strict=True):
        assert (gradient == 0).all() == name.startswith("q_linear")
