"""Flows between embeddings: the released network, grids and classes, and what follows their velocities."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffusion.model.embedding_scale import EmbeddingScale
from diffusion.model.flow import EmbeddingFlow, FlowConfig, infer_config, load_flow, save_flow
from diffusion.utils.errors import InputError, MissingError

SIZES = dict(width=12, hidden_size=8, bottleneck=10, time_size=6, sinusoids=4, depth=2)


def filled(config: FlowConfig, seed: int = 0) -> EmbeddingFlow:
    """A flow none of whose weights is zero."""
    flow = EmbeddingFlow(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return flow.eval()


def plain_velocity(weights: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The released network, as the paper's code computes it: rows (N, D) at times (N,)."""

    def linear(name: str, value: torch.Tensor) -> torch.Tensor:
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, value: torch.Tensor, eps: float) -> torch.Tensor:
        return F.layer_norm(value, value.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    half = weights["time_embed.0.weight"].shape[1] // 2
    angles = 999 * t[:, None] * torch.tensor([math.exp(-math.log(10_000) * k / half) for k in range(half)])
    time = linear("time_embed.2", F.silu(linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))
    x = linear("input_proj", x)
    for i in range(len({name.split(".")[1] for name in weights if name.startswith("res_blocks")})):
        block = f"res_blocks.{i}"
        h = linear(f"{block}.in_layers.2", F.silu(norm(f"{block}.in_layers.0", x, 1e-5)))
        h = h + linear(f"{block}.emb_layers.1", F.silu(time))
        x = x + linear(f"{block}.out_layers.3", F.silu(norm(f"{block}.out_layers.0", h, 1e-5)))
    return linear("out.2", F.silu(norm("out.0", x, 1e-6)))


def test_velocity_is_that_of_the_released_network():
    flow = filled(FlowConfig(**SIZES))
    x, t = torch.randn(7, 12), torch.rand(7)
    torch.testing.assert_close(flow(x, t), plain_velocity(flow.state_dict(), x, t), rtol=1e-5, atol=1e-5)


def test_the_default_is_of_the_released_size():
    with torch.device("meta"):
        flow = EmbeddingFlow(FlowConfig())
    assert sum(parameter.numel() for parameter in flow.parameters()) == 24_166_912


def test_euler_steps_are_those_of_the_release():
    flow, x, steps = filled(FlowConfig(**SIZES)), torch.randn(5, 12), 4
    expected = x
    for step in range(steps):
        expected = expected + plain_velocity(flow.state_dict(), expected, torch.full((5,), step / steps)) / steps
    torch.testing.assert_close(flow.translate(x, steps), expected, rtol=1e-5, atol=1e-5)
    images = torch.randn(2, 3, 12)  # every token by itself
    torch.testing.assert_close(flow.translate(images, 2)[1, 2], flow.translate(images[1, 2][None], 2)[0])


def test_heun_is_of_second_order():
    """dx/dt = x of an exact flow: e after one unit of time; the error falls with the square of the steps, Euler's with the steps."""
    flow = EmbeddingFlow(FlowConfig(**SIZES))
    flow.forward = lambda x, t, label=None: x  # type: ignore[method-assign]
    errors = {
        method: [abs(float(flow.integrate(torch.ones(1, 12), steps, method)[0, 0]) - math.e) for steps in (10, 20)]
        for method in ("euler", "heun")
    }
    assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, rel=0.1)
    assert errors["heun"][0] / errors["heun"][1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files(tmp_path: Path, suffix):
    flow, path = filled(FlowConfig(**SIZES)), tmp_path / f"flow{suffix}"
    if suffix == ".pth":  # as released: a plain state dict
        torch.save(flow.state_dict(), path)
    else:
        save_flow(flow, path)
        with pytest.raises(InputError, match="is already there"):
            save_flow(flow, path)
    loaded = load_flow(path)
    assert loaded.config == flow.config and not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in flow.state_dict().items())


def test_a_release_becomes_safetensors(tmp_path: Path):
    from diffusion.cli.commands.convert import convert

    flow = filled(FlowConfig(**SIZES))
    torch.save(flow.state_dict(), tmp_path / "flow.pth")
    convert(tmp_path / "flow.pth", tmp_path / "flow.safetensors", "flow")
    loaded = load_flow(tmp_path / "flow.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in flow.state_dict().items())
    with pytest.raises(InputError, match="--to flow writes a .safetensors file"):
        convert(tmp_path / "flow.pth", tmp_path / "flow", "flow")


def test_a_prior_keeps_its_arguments(tmp_path: Path):
    config = FlowConfig(**{**SIZES, "hidden_size": 16}, tokens=4, components=5, classes=("a", "b"), shares=(0.25, 0.75))
    flow = filled(config)
    save_flow(flow, tmp_path / "prior.safetensors")
    loaded = load_flow(tmp_path / "prior.safetensors")
    assert loaded.config == config
    noise, label = torch.randn(3, 4, 5), torch.tensor([0, 1, 1])
    torch.testing.assert_close(loaded.draw(noise, label, 2), flow.draw(noise, label, 2))


def test_what_is_no_flow_is_refused(tmp_path: Path):
    with pytest.raises(MissingError, match="no embedding flow at"):
        load_flow(tmp_path / "nowhere.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="holds no embedding flow"):
        load_flow(tmp_path / "other.pth")
    torch.save({**EmbeddingFlow(FlowConfig(**SIZES)).state_dict(), "more": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(InputError, match="unknown: more"):
        load_flow(tmp_path / "more.pth")
    with pytest.raises(InputError, match="holds no embedding flow"):
        infer_config({"input_proj.weight": torch.zeros(2)}, "x")


def test_flows_say_what_they_are_for():
    translating = EmbeddingFlow(FlowConfig(**SIZES))
    with pytest.raises(InputError, match="begins at embeddings"):
        translating.draw(torch.zeros(1, 1, 12))
    with pytest.raises(InputError, match="embeddings of 9 values: the flow translates those of 12"):
        translating.translate(torch.zeros(1, 9))
    with pytest.raises(InputError, match="0 steps of a flow"):
        translating.translate(torch.zeros(1, 12), 0)
    prior = EmbeddingFlow(FlowConfig(**SIZES, components=3))
    with pytest.raises(InputError, match="begins at noise"):
        prior.translate(torch.zeros(1, 12))


@pytest.mark.parametrize("tokens", [1, 4])
def test_an_untrained_prior_draws_the_gaussian_that_it_is_fitted_to(tokens):
    """Mean, covariance and the correlation of neighbours, to within sampling error."""
    generator = torch.Generator().manual_seed(0)
    shared, own = (torch.randn(4000, n, 6, generator=generator) for n in (1, tokens))
    tokens_of = 3 + (0.8 * shared + 0.6 * own) @ torch.diag(torch.tensor([4.0, 2, 1, 0.5, 0.2, 0.1]))
    config = FlowConfig(
        width=6, hidden_size=16, bottleneck=8, time_size=8, sinusoids=8, depth=1, tokens=tokens, components=6
    )
    flow = EmbeddingFlow(config)
    assert flow.scale is not None
    flow.scale.fit(tokens_of)
    white = flow.scale.whiten(tokens_of)
    torch.testing.assert_close(torch.cov(white.flatten(1).T), torch.eye(6 * tokens), atol=0.06, rtol=0)
    torch.testing.assert_close(flow.scale.colour(white), tokens_of, atol=1e-4, rtol=0)
    drawn = flow.draw(torch.randn(4000, tokens, 6, generator=generator), steps=20)
    assert (drawn.mean((0, 1)) - 3).abs().max() < 0.25
    for place in range(tokens):
        for other in range(tokens):
            got, want = (torch.cov(torch.cat([each[:, place], each[:, other]], 1).T) for each in (drawn, tokens_of))
            assert (got - want).abs().max() < 0.1 * want.max()


def test_a_class_is_drawn_around_its_own_mean():
    generator = torch.Generator().manual_seed(0)
    label = torch.tensor([0] * 1500 + [1] * 500 + [2])
    centres = torch.tensor([[0.0, 0, 0], [8, 0, 0], [0, 60, 0]])
    tokens = (centres[label] + torch.randn(len(label), 3, generator=generator))[:, None]
    scale = EmbeddingScale(3, 3, classes=4)
    scale.fit(tokens, label)
    drawn = scale.colour(torch.randn(len(label), 1, 3, generator=generator), label)
    for number in (0, 1):
        part, real = drawn[label == number, 0], tokens[label == number, 0]
        assert (part.mean(0) - real.mean(0)).abs().max() < 0.3
        assert 0.9 < float(part[:, 0].std()) < 1.1  # and not that of both classes together, which is 3.6
    assert scale.means[2, 1] == pytest.approx(20, abs=1)  # one image: a third of the way from the mean of all
    torch.testing.assert_close(scale.means[3], tokens.mean((0, 1)))  # none
    torch.testing.assert_close(scale.colour(scale.whiten(tokens, label), label), tokens, atol=1e-4, rtol=0)


def test_embeddings_that_lie_in_few_directions():
    scale = EmbeddingScale(10, 4)
    rows = torch.randn(50, 1, 2) @ torch.randn(2, 10)
    scale.fit(rows)
    assert scale.whiten(rows).isfinite().all()
    torch.testing.assert_close(scale.colour(scale.whiten(rows)), rows, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="all embeddings to fit a scale to are equal"):
        scale.fit(torch.ones(5, 1, 10))
    with pytest.raises(InputError, match="1 images to fit"):
        scale.fit(torch.ones(1, 1, 10))


def test_arguments_that_contradict_each_other():
    for arguments, message in (
        (dict(components=13), "components 13: embeddings have 12 values"),
        (dict(tokens=4, num_heads=3), "hidden_size 8: expected a multiple of 3 heads"),
        (dict(classes=("a",)), "expected one for each of 1 classes"),
        (dict(sinusoids=5), "sinusoids 5: expected an even number"),
    ):
        with pytest.raises(InputError, match=message):
            FlowConfig(**{**SIZES, **arguments})
    flow = EmbeddingFlow(FlowConfig(**SIZES, components=3, classes=("a",), shares=(1.0,)))
    with pytest.raises(ValueError, match="1 classes, and no labels are given"):
        flow(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected \(N, 1, 3\)"):
        flow(torch.zeros(2, 4), torch.zeros(2))
