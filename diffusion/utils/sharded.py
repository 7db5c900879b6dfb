"""Sharded tensors (DTensor, as FSDP2 makes them): the shard of this process, the full tensor, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def is_sharded(tensor: Any) -> TypeIs[DTensor]:
    """Tell whether a tensor is sharded."""
    return hasattr(tensor, "full_tensor")


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gather_full(tree: Any, keep: bool) -> Any:
    """A tree with its sharded tensors gathered on the CPU, or None for them where not kept. All processes call it."""

    def gather(tensor: torch.Tensor) -> torch.Tensor | None:
        if not is_sharded(tensor):
            return tensor
        tensor = tensor.full_tensor()  # one at a time: never the whole network on a GPU
        return tensor.cpu() if keep else None

    return tree_map_only(torch.Tensor, gather, tree)


def shard_like(full: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every process has, sharded as another is; without communication."""
    if not is_sharded(tensor):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)


def shard_optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole optimizer state, each tensor of its parameter's shape sharded as the parameter is.

    Raises ValueError for a state of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    of = dict(zip(indices, parameters, strict=True))

    def part(index: int, value: Any) -> Any:
        fits = isinstance(value, torch.Tensor) and value.shape == of[index].shape
        return shard_like(value, of[index]) if fits else value

    parts = {i: {name: part(i, value) for name, value in own.items()} for i, own in state["state"].items()}
    return {**state, "state": parts}
