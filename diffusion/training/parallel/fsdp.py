"""Training with FSDP2: every process keeps a part of each weight, of its gradient, its average and its optimizer state.

Files hold whole tensors: a sharded run goes on from the state of one that was not, and the other way round.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch

from diffusion.utils.errors import InputError


def sharding_arguments(use_fsdp: bool, optimizer: str, cpu: bool, layers: Sequence[str]) -> dict[str, Any]:
    """Return accelerate's arguments for FSDP2, by `use_fsdp` or the launcher's own settings; none without, or for one process.

    Raises InputError for FSDP 1, and for an optimizer that does not shard.
    """
    if not is_sharding_requested(use_fsdp):
        return {}
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, ParallelismConfig
    from torch.distributed.fsdp import MixedPrecisionPolicy

    check_shardable(optimizer)
    state = PartialState(cpu=cpu)
    if state.num_processes == 1:
        return {}
    assert state.device is not None  # chosen with the first PartialState
    if state.device.type == "cpu":  # where accelerate would drop the plugin without a word
        state.distributed_type = DistributedType.MULTI_GPU
    plugin = FullyShardedDataParallelPlugin(  # what is not said here comes from the launcher
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(layers),
        activation_checkpointing=False,  # the config's grad_checkpointing does it, and keeps the names of weights
        cpu_ram_efficient_loading=False,  # every process has the weights; accelerate's way fails at buffers among them
        # autocast alone decides what is computed in half precision, as without FSDP
        mixed_precision_policy=MixedPrecisionPolicy(output_dtype=torch.float32, cast_forward_inputs=False),
    )
    # what is not given, variables would say; which ways of sharing there are depends on accelerate's version
    sizes = {field.name: 1 for field in dataclasses.fields(ParallelismConfig) if field.name.endswith("_size")}
    mesh = ParallelismConfig(**{**sizes, "dp_shard_size": state.num_processes})
    return {"fsdp_plugin": plugin, "parallelism_config": mesh}


def check_shardable(optimizer: str) -> None:
    """Raise InputError for a run that is to be sharded and cannot be."""
    if _by_launcher() and os.environ.get("FSDP_VERSION") != "2":
        raise InputError(
            "FSDP 1 is not served; give accelerate launch --fsdp_version 2, or its config file fsdp_version: 2"
        )
    if os.environ.get("FSDP_IGNORED_MODULES"):
        raise InputError(
            f"FSDP_IGNORED_MODULES={os.environ['FSDP_IGNORED_MODULES']}: parts that are not sharded would train alone in "
            "every process; `unset FSDP_IGNORED_MODULES`, or take fsdp_ignored_modules out of accelerate's config"
        )
    if optimizer.startswith("CAME"):
        raise InputError(
            "CAME does not shard: its factors belong to whole matrices; set optimizer.type=AdamW, or no FSDP"
        )


def is_sharding_requested(use_fsdp: bool) -> bool:
    """Tell whether a run is to be sharded, by its config or by accelerate's launcher."""
    return use_fsdp or _by_launcher()


def _by_launcher() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
