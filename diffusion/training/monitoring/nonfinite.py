"""Steps whose numbers are not finite: which samples were in them, and where in the network the first one appeared."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from diffusion.data.batch import Batch
from diffusion.training.task import Task
from diffusion.utils.sharded import local_shard
from diffusion.utils.text import abbreviate

SHOWN = 8  # names, layers or parameters in a report


def report_nonfinite(network: nn.Module, model: nn.Module, task: Task, batches: Sequence[tuple[Batch, Any]]) -> str:
    """Report where the numbers of a step stopped being finite; called before its gradients are cleared.

    The forward passes run again on what was drawn for the batches. network: what computes the losses; model: the
    network in it. To be called by all processes, which may hold parts of one network.
    """
    lines = []
    for batch, noise in batches:
        with torch.no_grad(), first_bad_layer(model) as found:
            values = task.compute_losses(network, batch, noise)[task.losses[0]]
        lines += [f"first layer with bad numbers: {found[0] if found else 'none; the loss itself, or the inputs'}"]
        timesteps = getattr(noise, "timestep", None)
        lines += [_describe_sample(batch, i, values[i].item(), timesteps) for i in worst(values)]
    spoiled = [
        name for name, weight in model.named_parameters() if weight.grad is not None and not _is_finite(weight.grad)
    ]
    lines += [
        f"gradients with bad numbers: {abbreviate(spoiled, SHOWN)} ({len(spoiled)} of {len(list(model.parameters()))})"
    ]
    weights = [name for name, weight in model.named_parameters() if not _is_finite(weight)]
    lines += [f"weights with bad numbers: {abbreviate(weights, SHOWN)}"]
    return "\n".join(lines)


@contextlib.contextmanager
def first_bad_layer(model: nn.Module) -> Iterator[list[str]]:
    """Collect, in the block, the name of the first module that makes numbers that are not finite from finite ones."""
    found: list[str] = []

    def check_output(name: str, inputs: tuple, output: Any) -> None:
        if not found and not _is_finite(output) and all(_is_finite(part) for part in inputs):
            found.append(name or "the input")

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: check_output(name, inputs, output))
        for name, module in model.named_modules()
        if not list(module.children())  # layers; what holds them is bad because they are
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def worst(values: torch.Tensor) -> list[int]:
    """Return the samples whose losses (B,) are not finite, or those with the largest."""
    bad = [i for i, value in enumerate(values.tolist()) if not math.isfinite(value)]
    return (bad or values.argsort(descending=True).tolist())[:SHOWN]


def _describe_sample(batch: Batch, i: int, loss: float, timesteps: torch.Tensor | None) -> str:
    parts = [f"{name} {_range(tensor[i])}" for name, tensor in batch.tensors().items()]
    timestep = "" if timesteps is None else f"timestep {timesteps[i].item()}, "
    return f"{batch.names[i]}: loss {loss:g}, {timestep}{', '.join(parts)}"


def _range(tensor: torch.Tensor) -> str:
    bad = int((~tensor.isfinite()).sum())
    return f"{tensor.min().item():.3g} to {tensor.max().item():.3g}" + (f", {bad} bad values" if bad else "")


def _is_finite(value: Any) -> bool:
    """Tell whether a tensor has finite numbers only; anything else counts as finite."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return True
    return bool(local_shard(value).isfinite().all())  # of a sharded one, this process's part
