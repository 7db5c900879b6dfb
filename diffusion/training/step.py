"""One optimizer step: gradients of a global batch, and what becomes of one whose numbers went bad."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from diffusion.data.batch import PatchBatch
from diffusion.training.batch_losses import BatchLosses, Drawn
from diffusion.training.monitoring.nonfinite import SHOWN, report
from diffusion.training.parallel.fsdp import is_sharded
from diffusion.training.prefetch import DevicePrefetcher
from diffusion.training.state import RunState
from diffusion.utils.text import abbreviate

log = logging.getLogger(__name__)

BAD_STEPS_FILE = "bad_steps.txt"


@dataclass(frozen=True)
class Step:
    """The forward and backward passes of an optimizer step, before the update."""

    batches: list[tuple[PatchBatch, Drawn]]
    grad_norm: torch.Tensor  # before clipping
    losses_finite: bool  # of this process
    gradient_finite: bool


def accumulate(run: RunState, network: nn.Module, losses: BatchLosses, supply: DevicePrefetcher) -> Step:
    """Gradients of a global batch, clipped where they are finite; its losses go to the meter when they are."""
    accelerator, config = run.accelerator, run.config
    batches, values, idle = [], [], 0.0
    for _ in range(config.gradient_accumulation_steps):
        batch, chance, idle_seconds = supply.take()
        with accelerator.accumulate(network):
            noise = losses.draw(chance)
            batch_losses = losses.given(network, batch, noise)
            accelerator.backward(batch_losses["loss"].mean())
        run.bad_items.add(batch)
        run.position += config.train_batch_size * accelerator.num_processes
        batches, values, idle = [*batches, (batch, noise)], [*values, batch_losses], idle + idle_seconds
    accelerator.unscale_gradients()
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters], foreach=True)
    grad_norm = norm.full_tensor() if is_sharded(norm) else norm
    finite = torch.stack([batch_losses["loss"].isfinite().all() for batch_losses in values]).all()
    supply.prefetch()
    losses_finite, gradient_finite = torch.stack([finite, grad_norm.isfinite()]).tolist()  # the one wait for the device
    if gradient_finite:  # by another norm, every gradient would be as bad as the worst
        nn.utils.clip_grads_with_norm_(parameters, config.gradient_clip, norm, foreach=True)
    update_timestep_sampler(run, [noise for _, noise in batches], values)
    run.meter.end_step(idle)
    if losses_finite:
        for batch_losses in values:
            run.meter.add(batch_losses)
    return Step(batches, grad_norm, losses_finite, gradient_finite)


def update_timestep_sampler(run: RunState, noise: list[Drawn], values: list[dict[str, torch.Tensor]]) -> None:
    """Tell a sampler of timesteps that wants to know the losses of all processes, without their weights."""
    if not run.timesteps.needs_losses:
        return
    pairs = [torch.stack([d.timestep, v["loss"].detach() / d.weight], 1) for d, v in zip(noise, values, strict=True)]
    # batches without their bad items are not equally long; losses that are no number count for nothing
    padded = run.accelerator.pad_across_processes(torch.cat(pairs), pad_index=math.nan)
    gathered = run.accelerator.gather(padded).cpu()
    run.timesteps.update(gathered[:, 0].nan_to_num().long(), gathered[:, 1])


def report_bad_step(run: RunState, network: nn.Module, losses: BatchLosses, step: Step, work_dir: Path) -> None:
    """Name the patches of a step that is left out; of the last that is borne, say where the bad numbers are."""
    from accelerate.utils import gather_object

    gathered = gather_object([([name for batch, _ in step.batches for name in batch.names], step.losses_finite)])
    culprits = [names for names, finite in gathered if not finite] or [names for names, _ in gathered]
    names = [name for of_process in culprits for name in of_process]
    message = f"step {run.step + 1} skipped, {run.skipped_in_a_row} in a row: its loss or gradient is not finite"
    log.warning("%s. Patches: %s", message, abbreviate(names, SHOWN))
    texts = []
    if run.skipped_in_a_row >= run.config.max_bad_steps:
        texts = gather_object([report(network, run.model, losses, step.batches)])
    if run.accelerator.is_main_process:
        with open(work_dir / BAD_STEPS_FILE, "a") as file:
            file.write("\n".join([f"{message}. Patches:", *names, ""]))
            file.writelines(f"process {i}\n{text}\n" for i, text in enumerate(texts))


def warm_up_ddp_buckets(run: RunState, network: nn.Module, losses: BatchLosses) -> None:
    """A backward pass whose gradients are thrown away, before the first step.

    DDP sums gradients in buckets, and puts them together anew after its first backward pass. Sums in another order
    round otherwise: of three processes or more, a run that goes on would leave the one that never stopped.
    """
    config, device = run.config, run.accelerator.device
    if run.accelerator.num_processes == 1:
        return
    size, count = config.input_size, config.train_batch_size
    latents = torch.zeros(count, run.model.config.in_channels, size, size, device=device)
    tokens = torch.zeros(count, config.model_max_length, config.caption_channels, device=device)
    batch = PatchBatch(latents, tokens, names=[""] * count, seeds=[0] * count)
    run.accelerator.backward(losses(network, batch)["loss"].mean())
    run.optimizer.zero_grad()
