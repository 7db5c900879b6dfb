"""The network: shapes, parts against naive forms, options that must not change the numbers, real size."""

from __future__ import annotations

import math
import resource

import pytest
import torch

from diffusion.model import PixArt, build_model
from diffusion.model.blocks import CrossAttention, SelfAttention
from diffusion.model.convert import load_into, load_weights
from diffusion.model.embed import ConditionEmbedder, TimestepEmbedder, sincos_2d
from diffusion.model.local_attention_init import NEIGHBOURS, look_at_neighbours
from diffusion.objective import training_losses
from diffusion.utils.errors import InputError

SMALL = dict(input_size=16, hidden_size=32, depth=2, num_heads=4, caption_channels=12, model_max_length=4)


def small(seed: int = 0, **kwargs) -> PixArt:
    """A small network whose zero-initialized layers are filled, so that every part shows in the output."""
    torch.manual_seed(seed)
    model = PixArt(**{**SMALL, **kwargs})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def inputs(rows: int = 16, columns: int = 16, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 16, rows, columns, generator=generator)
    return x, torch.tensor([3, 900])[:batch], torch.randn(batch, 4, 12, generator=generator)


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (8, 24), (32, 10)])
@torch.no_grad()
def test_any_grid_that_the_patch_divides(rows, columns):
    assert small()(*inputs(rows, columns)).shape == (2, 32, rows, columns)


@torch.no_grad()
@pytest.mark.parametrize("timestep", [100, 900])
def test_a_local_start_looks_at_neighbours(timestep):
    """In the network at work, on noise: each head's strongest look, away from the border, is at the neighbour meant for it."""
    arguments = {**SMALL, "input_size": 32, "hidden_size": 192, "depth": 3, "num_heads": 6}
    model = PixArt(**arguments, pe_interpolation=0.5, qk_norm=True).eval()
    look_at_neighbours(model)
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
            look_at_neighbours(PixArt(**{**arguments, "qk_norm": True, **wrong}))


def test_inputs_that_do_not_fit():
    model, (x, timestep, y) = small(), inputs()
    for bad in ((x[:, :3], timestep, y), (x[..., :15], timestep, y), (x, timestep, y[:, :1]), (x, timestep[:1], y)):
        with pytest.raises(ValueError, match="expected"):
            model(*bad)
    with pytest.raises(InputError, match="multiple of num_heads"):
        PixArt(**{**SMALL, "num_heads": 5})
    with pytest.raises(InputError, match="known are PixArt_XL_2_UNI"):
        build_model("PixArt_XXL")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(depth="small"), "PixArt's depth is 'small': expected int"),
        (dict(depth=0), "PixArt's depth 0: expected at least 1, at most 1024"),
        (dict(depth=True), "PixArt's depth is True"),
        (dict(num_heads=0), "PixArt's num_heads 0"),
        (dict(num_heads=5), "must be a multiple of num_heads 5"),
        (dict(mlp_ratio=-1), "PixArt's mlp_ratio -1.0: expected more than 0"),
        (dict(mlp_ratio=1e-6), "makes 0.000192 hidden units"),
        (dict(mlp_ratio=float("nan")), "PixArt's mlp_ratio nan: expected a number that is finite"),
        (dict(patch_size=5), "input_size 32 must be a multiple of patch_size 5"),
        (dict(qk_norm=1), "PixArt's qk_norm is 1: expected bool"),
        (dict(use_cond_pos_embed=True, caption_channels=10), "caption_channels 10 must be a multiple of 4"),
    ],
    ids=str,
)
def test_arguments_that_make_no_network(arguments, message):
    with pytest.raises(InputError, match=message):
        build_model("PixArt_Ti_2_UNI", **arguments)


def test_a_new_network_predicts_zero_and_ignores_its_condition():
    model = PixArt(**SMALL).eval()
    assert model(*inputs()).abs().max() == 0


@torch.no_grad()
def test_unpatchify_puts_every_token_where_its_patch_was():
    model = small()
    tokens = torch.arange(2 * 3 * 4 * 32, dtype=torch.float32).reshape(1, 6, 4 * 32)  # 2 x 3 tokens of 2 x 2 cells
    picture = model.unpatchify(tokens, 2, 3)
    for token in range(6):
        for cell in range(4):
            row, column = 2 * (token // 3) + cell // 2, 2 * (token % 3) + cell % 2
            assert torch.equal(picture[0, :, row, column], tokens[0, token].reshape(4, 32)[cell])


def test_position_embedding_is_the_formula():
    rows, columns = torch.tensor([0.0, 1.5]), torch.tensor([0.0, 0.5, 2.0])
    grid = sincos_2d(8, rows, columns)
    frequencies = [1.0, 10000 ** (-1 / 2)]
    for i, row in enumerate(rows.tolist()):
        for j, column in enumerate(columns.tolist()):
            expected = [f(c * w) for c in (column, row) for f in (math.sin, math.cos) for w in frequencies]
            assert grid[3 * i + j].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("size", "interpolation"), [(32, 0.5), (64, 1.0), (128, 2.0)])
def test_all_stages_span_the_same_positions(size, interpolation):
    model = PixArt(**{**SMALL, "input_size": size, "pe_interpolation": interpolation})
    n = size // 2
    expected = sincos_2d(32, torch.arange(n) * 32 / n, torch.arange(n) * 32 / n)
    torch.testing.assert_close(model.pos_embed[0], expected)


@pytest.mark.parametrize(
    ("size", "tokens", "interpolation", "centres"), [(64, 4, 1.0, [8, 24]), (128, 16, 2.0, [4, 12, 20, 28])]
)
def test_condition_tokens_sit_at_the_centres_of_their_windows(size, tokens, interpolation, centres):
    arguments = {**SMALL, "input_size": size, "model_max_length": tokens, "pe_interpolation": interpolation}
    model = PixArt(**arguments, use_cond_pos_embed=True)
    expected = sincos_2d(12, torch.tensor(centres), torch.tensor(centres))
    torch.testing.assert_close(model.y_pos_embed[0], expected)


def test_timestep_features():
    embedder = TimestepEmbedder(4)
    embedder.mlp = torch.nn.Sequential(torch.nn.Linear(256, 256))
    torch.nn.init.eye_(embedder.mlp[0].weight)
    torch.nn.init.zeros_(embedder.mlp[0].bias)
    features = embedder(torch.tensor([7]))[0]
    assert features[1].item() == pytest.approx(math.cos(7 * 10000 ** (-1 / 128)), abs=1e-5)
    assert features[130].item() == pytest.approx(math.sin(7 * 10000 ** (-2 / 128)), abs=1e-5)


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


@pytest.mark.parametrize("length", [1, 4])
def test_gradient_checkpointing_changes_nothing(length):
    gradients = []
    for checkpointing in (False, True):
        model = small(model_max_length=length)
        model.grad_checkpointing = checkpointing
        x, timestep, y = inputs()
        model(x, timestep, y[:, :length]).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("count", [0, 1, 2])
@torch.no_grad()
def test_residuals_are_added_after_their_blocks(count):
    model, (x, timestep, y) = small(), inputs()
    residuals = [torch.randn(2, 64, 32) for _ in range(count)]
    got = model(x, timestep, y, residuals=residuals)
    for block, residual in zip(model.blocks, residuals, strict=False):
        block.register_forward_hook(lambda module, inputs, output, residual=residual: output + residual)
    assert torch.equal(got, model(x, timestep, y))


@torch.no_grad()
def test_zero_residuals_change_nothing_and_more_than_blocks_are_refused():
    model, (x, timestep, y) = small(), inputs()
    plain, zero = model(x, timestep, y), torch.zeros(2, 64, 32)
    for count in (1, 2):
        assert torch.equal(model(x, timestep, y, residuals=[zero] * count), plain)
    with pytest.raises(ValueError, match="3 residuals: expected at most 2"):
        model(x, timestep, y, residuals=[zero] * 3)
    with pytest.raises(ValueError, match=r"residual of shape \(1, 64, 32\): expected \(2, 64, 32\)"):
        model(x, timestep, y, residuals=[zero[:1]])


def test_gradients_reach_residuals_through_checkpointed_blocks():
    gradients = []
    for checkpointing in (False, True):
        model = small()
        model.grad_checkpointing = checkpointing
        residual = torch.full((2, 64, 32), 0.1, requires_grad=True)
        model(*inputs(), residuals=[residual]).square().mean().backward()
        gradients.append((residual.grad, *(parameter.grad for parameter in model.parameters())))
    assert gradients[0][0].any()
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


@torch.no_grad()
def test_fp32_attention_is_more_exact_under_autocast():
    exact = small()(*inputs())
    errors = []
    for fp32_attention in (False, True):
        model = small(fp32_attention=fp32_attention, qk_norm=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(*inputs())
        errors.append((output.float() - exact).norm() / exact.norm())
    assert errors[1] < errors[0] < 0.05
    assert torch.equal(small(fp32_attention=True)(*inputs()), exact)


def test_condition_dropout_replaces_whole_samples_in_training_only():
    embedder = ConditionEmbedder(channels=6, width=4, dropout=0.25, tokens=3)
    y = torch.randn(4000, 3, 6)
    torch.manual_seed(0)
    dropped = (embedder.drop(y) == embedder.y_embedding).flatten(1)
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert dropped.all(1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(embedder.eval().drop(y), y)
    chosen = torch.arange(len(y)) % 3 == 0  # named, they are dropped whatever the mode
    assert torch.equal(embedder.drop(y, chosen), torch.where(chosen[:, None, None], embedder.y_embedding, y))


@torch.no_grad()
def test_null_tokens_have_positions_too():
    model = small(use_cond_pos_embed=True)
    x, timestep, _ = inputs()
    null = model.null_condition.expand(2, -1, -1)
    before = model(x, timestep, null)
    model.y_pos_embed.zero_()
    assert not torch.allclose(model(x, timestep, null), before)


def test_the_null_condition_is_saved_but_not_trained():
    model = PixArt(**SMALL)
    assert "y_embedder.y_embedding" in model.state_dict()
    assert "y_embedder.y_embedding" not in dict(model.named_parameters())
    assert torch.equal(model.null_condition, model.state_dict()["y_embedder.y_embedding"])


@pytest.mark.slow
def test_the_published_network(tmp_path):
    """608.07 M parameters; official names load strictly; a forward pass and a training step in under 16 GB."""
    model = build_model("PixArt_XL_2_UNI", input_size=32, pe_interpolation=0.5)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(608.07, abs=0.005)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "pixcell_256.ckpt")
    weights = load_weights(tmp_path / "pixcell_256.ckpt")
    assert weights.architecture["depth"] == 28 and weights.architecture["num_heads"] == 16
    load_into(model, weights.state_dict, "pixcell_256.ckpt")
    del weights
    x, y, timestep = torch.randn(1, 16, 32, 32), torch.randn(1, 1, 1536), torch.tensor([500])
    with torch.no_grad():
        assert model(x, timestep, y).shape == (1, 32, 32, 32)
    model.train()
    model.grad_checkpointing = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    before = model.final_layer.linear.weight.clone()
    losses = training_losses(model, x, timestep, y)
    losses["loss"].mean().backward()
    optimizer.step()
    assert not torch.equal(model.final_layer.linear.weight, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < 16


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


def test_tokens_lie_together_in_memory():
    """A transposed residual would make every block read across memory, for twice the time."""
    model = build_model("PixArt_Ti_2_UNI", depth=1).eval()
    seen = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    model(torch.randn(2, 16, 32, 32), torch.tensor([3, 7]), torch.randn(2, 1, 1536))
    assert all(tokens.is_contiguous() for tokens in seen)
