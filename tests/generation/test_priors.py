"""Conditions that a prior draws, from the flow to samples on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from runs import forget_processes, save_run

from diffusion.cli.commands.sample import sample
from diffusion.generation.priors import PriorConditions, open_prior
from diffusion.generation.sources import ConditionSource
from diffusion.model.flow import EmbeddingFlow, FlowConfig, save_flow
from diffusion.utils.errors import InputError

WIDTH = 8
SIZES = dict(width=WIDTH, hidden_size=8, bottleneck=8, time_size=8, sinusoids=4, depth=1, components=WIDTH)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    """A prior of three classes whose embeddings have their class's number as mean."""
    torch.manual_seed(0)
    network = EmbeddingFlow(FlowConfig(**SIZES, classes=("fat", "stroma", "tumour A/B"), shares=(0.5, 0.5, 0.0)))
    save_flow(network, tmp_path / "prior.safetensors")
    return tmp_path / "prior.safetensors"


def test_a_number_s_condition_is_always_the_same(flow):
    prior = open_prior(flow, (), 1, WIDTH)
    conditions, again = PriorConditions(prior, 3), PriorConditions(prior, 3)
    assert conditions[5].name == again[5].name
    assert torch.equal(conditions[5].condition.tokens, again[5].condition.tokens)
    assert conditions[5].condition.tokens.shape == (1, 1, WIDTH)
    assert not torch.equal(conditions[5].condition.tokens, conditions[6].condition.tokens)
    assert not torch.equal(conditions[5].condition.tokens, PriorConditions(prior, 4)[5].condition.tokens)
    together, _ = prior.draw([11, 12], steps=3)
    torch.testing.assert_close(together[1:], prior.draw([12], steps=3)[0])


def test_classes_are_drawn_as_often_as_in_training_or_as_asked(flow):
    labels = [open_prior(flow, (), 1, WIDTH).choose_label(seed) for seed in range(400)]
    assert 2 not in labels and 150 < labels.count(0) < 250
    prior = open_prior(flow, ("tumour A/B",), 1, WIDTH)
    with pytest.raises(InputError, match="no image of tumour A/B was trained on"):
        prior.choose_label(0)
    assert {open_prior(flow, ("stroma",), 1, WIDTH).choose_label(seed) for seed in range(20)} == {1}


def test_what_does_not_fit_is_refused(flow, tmp_path):
    with pytest.raises(InputError, match="--class bone: .* has no such class; there are fat, stroma, tumour A/B"):
        open_prior(flow, ("bone",), 1, WIDTH)
    with pytest.raises(InputError, match="draws 1 tokens of 8 values: the network takes 16 of 8"):
        open_prior(flow, (), 16, WIDTH)
    save_flow(EmbeddingFlow(FlowConfig(**{**SIZES, "components": 0})), tmp_path / "flow.safetensors")
    with pytest.raises(InputError, match="translates embeddings: expected a prior"):
        open_prior(tmp_path / "flow.safetensors", (), 1, WIDTH)
    with pytest.raises(InputError, match="--tokens and --prior: one of them conditions"):
        ConditionSource(tokens=[Path("a.npy")], prior=flow)
    with pytest.raises(InputError, match="--class names classes of a prior"):
        ConditionSource(classes=("fat",))


def test_samples_need_no_patch(flow, tmp_path):
    run = save_run(tmp_path / "run", tmp_path, WIDTH, 256)
    out = tmp_path / "out"
    sample(workdir=run, prior=flow, class_=("stroma",), count=2, steps=2, out=out, device="cpu")
    names = sorted(path.name for path in (out / "syn").iterdir())
    assert names == ["000000_stroma.png", "000001_stroma.png"] and not (out / "real").exists()
    forget_processes()
    with pytest.raises(InputError, match="holds samples with"):  # of another class
        sample(workdir=run, prior=flow, class_=("fat",), count=2, steps=2, out=out, device="cpu")


def test_python_samples_from_a_prior(flow, tmp_path):
    import pixcell

    run = pixcell.open_run(save_run(tmp_path / "run", tmp_path, WIDTH, 256), device="cpu")
    names = [each.name for each in run.sample(prior=flow, classes=["fat"], count=2, steps=2)]
    assert names == ["fat", "fat"]
    with pytest.raises(InputError, match="prior and tokens: one of them conditions"):
        run.sample(prior=flow, tokens=np.zeros((1, WIDTH)))
    with pytest.raises(InputError, match="classes are those of a prior"):
        run.sample(classes=["fat"])


def test_copies_are_told_from_new_embeddings():
    """The test for copies rejects draws that are training embeddings with a little noise, and none that are new."""
    from diffusion.evaluation.prior_scores import EmbeddingSet, score_prior

    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(20, 20, generator=generator)
    sets = [EmbeddingSet(torch.randn(300, 1, 20, generator=generator) @ mixing) for _ in range(3)]
    fresh, held_out, training = sets
    copies = EmbeddingSet(training.tokens + 0.1 * torch.randn(300, 1, 20, generator=generator))
    honest, copied = score_prior(fresh, held_out, training), score_prior(copies, held_out, training)
    assert honest.values["p_copy"] > 0.05 and "no nearer to training images" in honest.notes[0]
    assert copied.values["p_copy"] < 1e-6 and "are nearer to training images" in copied.notes[0]
    assert honest.values["fd"] < 1.5 * honest.values["fd_real"]
    with pytest.raises(InputError, match="9 images to score a prior by"):
        score_prior(fresh.draw(9, 0), held_out, training)


def test_neighbours_of_a_grid():
    from diffusion.evaluation.prior_scores import neighbour_correlation

    rows = torch.zeros(5, 16, 4)
    rows[:, :, 0] = 1
    assert neighbour_correlation(rows, torch.zeros(4)) == pytest.approx(1)
    checkered = rows * torch.tensor([(-1.0) ** (i // 4 + i % 4) for i in range(16)])[:, None]
    assert neighbour_correlation(checkered, torch.zeros(4)) == pytest.approx(-1)


def test_classes_are_told_apart():
    from diffusion.evaluation.prior_scores import EmbeddingSet, compare_classes

    generator, labels = torch.Generator().manual_seed(0), np.arange(200) % 2

    def make(flip: bool) -> EmbeddingSet:
        tokens = torch.randn(200, 1, 6, generator=generator)
        tokens[:, 0, 0] += 6 * torch.from_numpy(labels)
        return EmbeddingSet(tokens, 1 - labels if flip else labels)

    found = compare_classes(make(flip=True), make(flip=False), make(flip=False))
    assert found["accuracy_real"] > 0.98 and found["accuracy"] < 0.02
