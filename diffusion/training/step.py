"""One optimizer step: the gradients of a global batch, and the report of one that is not finite."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.data.batch import Batch
from diffusion.training.monitoring.nonfinite import SHOWN, report_nonfinite
from diffusion.training.prefetch import DevicePrefetcher
from diffusion.training.state import RunState
from diffusion.training.task import TrainingData
from diffusion.utils.sharded import is_sharded
from diffusion.utils.text import abbreviate

log = logging.getLogger(__name__)

BAD_STEPS_FILE = "bad_steps.txt"


@dataclass(frozen=True)
class Step:
    """The forward and backward passes of an optimizer step, before the update."""

    batches: list[tuple[Batch, Any]]  # and the noise of each
    grad_norm: torch.Tensor  # before clipping
    losses_finite: bool  # of this process
    gradient_finite: bool


def accumulate(run: RunState, network: nn.Module, prefetcher: DevicePrefetcher) -> Step:
    """Compute the gradients of a global batch, clipped where they are finite; its losses go to the meter when they are."""
    accelerator, config, task = run.accelerator, run.config, run.task
    objective = task.losses[0]
    batches, values, idle = [], [], 0.0
    for _ in range(config.gradient_accumulation_steps):
        batch, randomness, idle_seconds = prefetcher.next()
        with accelerator.accumulate(network):
            noise = task.draw_noise(randomness)
            losses = task.compute_losses(network, batch, noise)
            accelerator.backward(losses[objective].mean())
        run.bad_items.add(batch)
        run.position += config.train_batch_size * accelerator.num_processes
        batches, values, idle = [*batches, (batch, noise)], [*values, losses], idle + idle_seconds
    accelerator.unscale_gradients()
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    grad_norm = norm.full_tensor() if is_sharded(norm) else norm
    finite = torch.stack([losses[objective].isfinite().all() for losses in values]).all()
    prefetcher.prefetch()
    losses_finite, gradient_finite = torch.stack([finite, grad_norm.isfinite()]).tolist()  # the one wait for the device
    if gradient_finite:  # by another norm, every gradient would be as bad as the worst
        nn.utils.clip_grads_with_norm_(parameters, config.gradient_clip, norm, foreach=True)
    task.update([(noise, losses) for (_, noise), losses in zip(batches, values, strict=True)], accelerator)
    run.meter.end_step(idle)
    if losses_finite:
        for losses in values:
            run.meter.add(losses)
    return Step(batches, grad_norm, losses_finite, gradient_finite)


def report_bad_step(run: RunState, network: nn.Module, step: Step, work_dir: Path) -> None:
    """Name the samples of a skipped step; of the last that is tolerated, report where its numbers are not finite."""
    from accelerate.utils import gather_object

    gathered = gather_object([([name for batch, _ in step.batches for name in batch.names], step.losses_finite)])
    culprits = [names for names, finite in gathered if not finite] or [names for names, _ in gathered]
    names = [name for process_names in culprits for name in process_names]
    message = f"step {run.step + 1} skipped, {run.skipped_in_a_row} in a row: its loss or gradient is not finite"
    log.warning("%s. Patches: %s", message, abbreviate(names, SHOWN))
    texts = []
    if run.skipped_in_a_row >= run.config.max_bad_steps:
        texts = gather_object([report_nonfinite(network, run.model, run.task, step.batches)])
    if run.accelerator.is_main_process:
        with open(work_dir / BAD_STEPS_FILE, "a") as file:
            file.write("\n".join([f"{message}. Patches:", *names, ""]))
            file.writelines(f"process {i}\n{text}\n" for i, text in enumerate(texts))


def warm_up_ddp_buckets(run: RunState, network: nn.Module, dataset: TrainingData) -> None:
    """Run a backward pass and discard its gradients, before the first step.

    DDP sums gradients in buckets, and puts them together again after its first backward pass. Sums in another order
    round otherwise: of three processes or more, a run that is resumed would leave the one that never stopped.
    """
    if run.accelerator.num_processes == 1:
        return
    batch = run.task.build_warm_up_batch(dataset, run.config.train_batch_size).to(run.accelerator.device)
    noise = run.task.draw_noise(run.task.draw_randomness(batch))
    losses = run.task.compute_losses(network, batch, noise)
    run.accelerator.backward(losses[run.task.losses[0]].mean())
    run.optimizer.zero_grad()
