"""Grids of any size from a prior of a smaller one, and the commands that sample for what a prior draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import forget_processes, save_run

from diffusion.cli.commands.large import large
from diffusion.cli.commands.sweep import sweep
from diffusion.cli.commands.vary import vary
from diffusion.generation.large_pictures import LargeSource
from diffusion.generation.prior_grids import draw_field, draw_grid
from diffusion.generation.priors import Prior
from diffusion.model.flow import EmbeddingFlow, FlowConfig, save_flow
from diffusion.utils.errors import InputError

WIDTH = 8


def make_prior(side: int, trained: bool = False) -> EmbeddingFlow:
    """A prior of two classes, far apart, whose tokens at neighbouring places correlate."""
    torch.manual_seed(0)
    sizes = dict(
        width=WIDTH, hidden_size=8, bottleneck=8, time_size=8, sinusoids=4, depth=2, components=WIDTH, num_heads=2
    )
    flow = EmbeddingFlow(FlowConfig(**sizes, tokens=side**2, classes=("fat", "stroma"), shares=(0.5, 0.5)))
    assert flow.scale is not None
    x, y = (axis.flatten().float() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    nearness = torch.exp(-((x[:, None] - x).square() + (y[:, None] - y).square()).sqrt() / 2)
    tokens = torch.einsum("lm,nmd->nld", torch.linalg.cholesky(nearness), torch.randn(2000, side**2, WIDTH))
    label = torch.arange(2000) % 2
    flow.scale.fit(tokens + 10 * label[:, None, None], label)
    if trained:
        for parameter in flow.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return flow.eval()


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


@pytest.mark.parametrize("side", [2, 4])
def test_places_of_a_field_correlate_as_those_of_the_prior_do(side):
    """By exp(-distance / 2) as far as a window of the prior reaches, and nearly so beyond."""
    scale = make_prior(side).scale
    assert scale is not None
    generator = torch.Generator().manual_seed(1)
    fields = torch.stack([draw_field(scale, side + 3, side + 1, generator) for _ in range(400)])
    covariance = torch.cov(fields.flatten(1, 2).transpose(1, 2).flatten(0, 1).T)
    rows, columns = (
        axis.flatten() for axis in torch.meshgrid(torch.arange(side + 3), torch.arange(side + 1), indexing="ij")
    )
    distance = torch.hypot((rows[:, None] - rows).float(), (columns[:, None] - columns).float())
    error = (covariance - torch.exp(-distance / 2)).abs()
    assert error[distance < 1.42 * (side - 1) + 0.1].max() < 0.12 and error.max() < 0.3


def test_an_untrained_prior_draws_its_field_and_a_trained_one_follows_its_windows():
    flow = make_prior(4)
    assert flow.scale is not None
    grid, label = draw_grid(Prior(flow, (1,)), 5, 6, 9, steps=20)
    assert grid.shape == (6, 9, WIDTH) and label == 1
    field = draw_field(flow.scale, 6, 9, torch.Generator().manual_seed(5))
    expected = flow.scale.to_tokens(field, flow.scale.means[1])
    torch.testing.assert_close(grid, expected, atol=0.02, rtol=0.01)  # 20 steps of Heun: x comes back to itself
    trained = Prior(make_prior(4, trained=True), (0,))
    one, _ = draw_grid(trained, 5, 4, 4)
    assert trained.flow.scale is not None
    field = draw_field(trained.flow.scale, 4, 4, torch.Generator().manual_seed(5)).flatten(0, 1)[None]
    alone = trained.flow.draw(trained.flow.scale.decorrelate(field), torch.tensor([0]))
    torch.testing.assert_close(one.flatten(0, 1)[None], alone, atol=1e-3, rtol=1e-3)
    corner, _ = draw_grid(trained, 5, 3, 2)
    assert torch.equal(corner, one[:3, :2])


def test_large_pictures_of_a_prior(tmp_path, capsys):
    save_flow(make_prior(2), tmp_path / "prior.safetensors")
    run = save_run(tmp_path / "run", tmp_path, WIDTH, 256)
    options = dict(workdir=run, prior=tmp_path / "prior.safetensors", height=512, width=768, steps=2, device="cpu")
    large(**options, out=tmp_path / "out", class_=("stroma",), count=2)
    names = sorted(path.name for path in (tmp_path / "out/syn").iterdir())
    assert names == ["000000_stroma.png", "000001_stroma.png"] and not (tmp_path / "out/real").exists()
    assert Image.open(tmp_path / "out/syn" / names[0]).size == (768, 512)
    forget_processes()
    with pytest.raises(InputError, match="holds samples with"):
        large(**options, out=tmp_path / "out", class_=("fat",), count=2)
    forget_processes()
    flow = EmbeddingFlow(FlowConfig(width=WIDTH, hidden_size=8, bottleneck=8, time_size=8, sinusoids=4, components=3))
    save_flow(flow, tmp_path / "single.safetensors")
    with pytest.raises(InputError, match="draws single embeddings, .* --size 512 or 1024"):
        large(**options | {"prior": tmp_path / "single.safetensors"}, out=tmp_path / "single")
    with pytest.raises(InputError, match="--tokens and --prior: one of them conditions"):
        LargeSource(tokens=Path("a.npy"), prior=Path("b"))
    with pytest.raises(InputError, match="--class names classes of a prior"):
        LargeSource(classes=["fat"])


def test_variations_of_drawn_embeddings(tmp_path):
    flow = make_prior(1)
    save_flow(flow, tmp_path / "prior.safetensors")
    options = dict(workdir=save_run(tmp_path / "run", tmp_path, WIDTH, 256), steps=2, device="cpu", variations=2)
    vary(**options, prior=tmp_path / "prior.safetensors", class_=("fat", "stroma"), between=3, out=tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    assert picture.width > 3 * 256 and picture.height > 3 * 256  # two rows of two, and the way of three
    assert "fat" in picture.info["pixcell"] and "stroma" in picture.info["pixcell"]
    forget_processes()
    vary(**options, prior=tmp_path / "prior.safetensors", out=tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").height < 2 * 256
    forget_processes()
    way = dict(class_=("fat", "stroma"), between=3, variations=0)
    vary(**options | way, prior=tmp_path / "prior.safetensors", out=tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").height < 2 * 256 < Image.open(tmp_path / "c.png").width
    for given, message in (
        (dict(prior=Path("b"), encoder="uni2"), "--encoder: of no effect beside --prior"),
        (dict(images=[Path("a.png")], prior=Path("b")), "a.png and --prior: one of them conditions"),
        (dict(), "name image files, or a prior"),
        (dict(images=[Path("a.png")], class_=("fat",)), "--class names classes of a prior"),
    ):
        with pytest.raises(InputError, match=message):
            vary(**options, **given, out=tmp_path / "c.png")


def test_a_sweep_of_what_a_prior_draws_needs_real_tissue(tmp_path):
    with pytest.raises(InputError, match="--prior has no tissue to score against"):
        sweep(workdir=tmp_path, prior=tmp_path / "prior", out=tmp_path / "sweep", device="cpu")
    with pytest.raises(InputError, match="--dataset: of no effect beside --prior"):
        sweep(workdir=tmp_path, prior=tmp_path / "prior", dataset=["a"], out=tmp_path / "sweep", device="cpu")
