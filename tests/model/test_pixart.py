"""The network: shapes, options that must not change the numbers, residuals, real size."""

from __future__ import annotations

import resource

import pytest
import torch

from diffusion.model import PixArt, build_model
from diffusion.model.convert import load_weights
from diffusion.model.embed import sincos_2d
from diffusion.model.matching import load_into
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


def test_tokens_lie_together_in_memory():
    """A transposed residual would make every block read across memory, for twice the time."""
    model = build_model("PixArt_Ti_2_UNI", depth=1).eval()
    seen = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    model(torch.randn(2, 16, 32, 32), torch.tensor([3, 7]), torch.randn(2, 1, 1536))
    assert all(tokens.is_contiguous() for tokens in seen)
