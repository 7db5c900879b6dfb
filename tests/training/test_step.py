"""One optimizer step: the gradient of a global batch, and what is counted of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from test_third_task import PointBatch
from torch import nn

from diffusion.training.prefetch import DevicePrefetcher
from diffusion.training.step import Step, accumulate


def take_step(*rows: list[float]) -> tuple[SimpleNamespace, Step]:
    """Take a step of a weight 0.5, whose losses are its products with x, in batches of two; their noise is their names."""
    network, counts, learnt = nn.Linear(1, 1, bias=False), [], []
    nn.init.constant_(network.weight, 0.5)
    task = SimpleNamespace(losses=("loss",), draw_noise=lambda names: names)
    task.update = lambda steps, accelerator: learnt.extend(steps)
    task.compute_losses = lambda network, batch, noise: {"loss": network(batch.x)[:, 0]}
    run = SimpleNamespace(accelerator=Accelerator(cpu=True, gradient_accumulation_steps=2), model=network, task=task)
    run.config = SimpleNamespace(gradient_accumulation_steps=2, train_batch_size=2, gradient_clip=1.5)
    run.meter = SimpleNamespace(add=lambda losses: counts.append(losses["loss"].tolist()), end_step=lambda waited: None)
    run.bad_items, run.position, run.counts, run.learnt = SimpleNamespace(add=lambda batch: None), 10, counts, learnt
    batches = [PointBatch(torch.tensor(x)[:, None], names=[f"{v:g}" for v in x], seeds=[0, 0]) for x in rows]
    prefetcher = DevicePrefetcher(iter(batches), torch.device("cpu"), lambda batch: batch.names)
    return run, accumulate(run, network, prefetcher)


def test_the_gradient_is_that_of_the_mean_over_all_batches_and_clipped():
    run, step = take_step([1.0, 3.0], [5.0, 7.0])
    assert step.grad_norm == 4 and step.losses_finite and step.gradient_finite  # the mean of x
    assert run.model.weight.grad.item() == pytest.approx(1.5)
    assert run.counts == [[0.5, 1.5], [2.5, 3.5]] and run.position == 14
    assert [(names, losses["loss"][0].item()) for names, losses in run.learnt] == [(["1", "3"], 0.5), (["5", "7"], 2.5)]


def test_losses_of_a_step_with_one_that_is_no_number_are_not_counted():
    run, step = take_step([torch.nan, 1.0], [1.0, 1.0])
    assert not step.losses_finite and not step.gradient_finite and run.counts == []
