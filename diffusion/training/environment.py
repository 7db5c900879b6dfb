"""accelerate as the config has it, whatever variables its launcher, other launchers or a shell have set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from diffusion.config.settings import TrainingConfig
from diffusion.training.parallel.fsdp import is_sharding_requested, sharding_arguments
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import NUMERIC_VARIABLES
from diffusion.utils.launch import accelerate_variables, check_launcher

if TYPE_CHECKING:
    from accelerate import Accelerator

DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")  # what cuBLAS asks for


def start_accelerator(
    config: TrainingConfig, cpu: bool, sharded_layers: Sequence[str] = (), unused_parameters: bool = False
) -> Accelerator:
    """Return an Accelerator with the config's settings; every one that accelerate else reads from variables is given.

    sharded_layers: class names of the layers that FSDP shards one by one; unused_parameters: whether a step may leave some
    without a gradient.

    Raises InputError for variables that ask for what is not served, or that accelerate cannot read.
    """
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        DynamoBackend,
        GradientAccumulationPlugin,
        TorchDynamoPlugin,
    )

    check_launcher()
    _set_determinism(config.deterministic, cpu)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # accelerate knows no other name for it yet
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=config.mixed_precision,
            # as an argument alone, ACCELERATE_GRADIENT_ACCUMULATION_STEPS would overrule it
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps),
            dynamo_plugin=TorchDynamoPlugin(
                backend=DynamoBackend.NO, mode="default", fullgraph=False, use_regional_compilation=False
            ),
            # buffers are constants, equal in all processes from the start
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=unused_parameters)
            ],
            **sharding_arguments(config.use_fsdp, config.optimizer.type, cpu, sharded_layers),
        )
    except InputError:
        raise
    except (ValueError, ImportError, NotImplementedError) as error:
        raise InputError(f"accelerate does not start ({error}); its variables: {accelerate_variables()}") from error
    check_accelerator(accelerator, config, cpu)
    return accelerator


def check_accelerator(accelerator: Accelerator, config: TrainingConfig, cpu: bool) -> None:
    """Hold what the Accelerator has become against the config. Raises InputError naming the first difference."""
    dynamo = accelerator.state.dynamo_plugin
    assert dynamo is not None  # given by start_accelerator
    became = {
        "gradient_accumulation_steps": (accelerator.gradient_accumulation_steps, config.gradient_accumulation_steps),
        "mixed_precision": (accelerator.mixed_precision, config.mixed_precision),
        "dynamo_backend": (dynamo.backend.value.lower(), "no"),
        "use_cpu": (accelerator.device.type == "cpu", cpu or accelerator.device.type == "cpu"),
        "sharding": (accelerator.is_fsdp2, is_sharding_requested(config.use_fsdp) and accelerator.num_processes > 1),
    }
    for name, (got, wanted) in became.items():
        if got != wanted:
            raise InputError(
                f"accelerate has {name} {got}, and the config {wanted}; its variables: {accelerate_variables()}. Unset what "
                "overrules the config, or launch with a file of docs/accelerate (--config_file)"
            )
    if accelerator.distributed_type.value in ("DEEPSPEED", "MEGATRON_LM", "XLA"):
        raise InputError(f"{accelerator.distributed_type.value} is not served; launch with a file of docs/accelerate")


def environment_notes(config: TrainingConfig) -> list[str]:
    """Return lines about variables that have no effect against the config, and about those that change numbers."""
    overruled = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", config.gradient_accumulation_steps),
        "ACCELERATE_DYNAMO_BACKEND": ("compile", config.compile),
        "FSDP_ACTIVATION_CHECKPOINTING": ("grad_checkpointing", getattr(config, "grad_checkpointing", False)),
    }
    idle = ("no", "false", "")  # what accelerate launch sets unasked
    notes = [
        f"{name}={value} has no effect: the config's {key}={own} holds"
        for name, (key, own) in overruled.items()
        if (value := os.environ.get(name, "")).lower() not in (*idle, str(own).lower())
    ]
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8":  # others stand in docs/accelerate, for other scripts
        notes.append(f"ACCELERATE_MIXED_PRECISION=fp8 has no effect: the config's {config.mixed_precision} holds")
    numeric = [name for name in NUMERIC_VARIABLES if os.environ.get(name)]
    if is_sharding_requested(config.use_fsdp) and os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        numeric.append("FSDP_OFFLOAD_PARAMS")
    if numeric:
        listed = ", ".join(f"{name}={os.environ[name]}" for name in numeric)
        notes.append(f"the environment changes how numbers are computed: {listed}")
    return notes


def _set_determinism(deterministic: bool, cpu: bool) -> None:
    """Have torch take deterministic kernels, or any. Raises InputError for a cuBLAS workspace that rules them out."""
    if deterministic:
        workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", DETERMINISTIC_WORKSPACES[0])
        if not cpu and torch.cuda.is_available() and workspace not in DETERMINISTIC_WORKSPACES:
            raise InputError(
                f"CUBLAS_WORKSPACE_CONFIG={workspace} contradicts deterministic=True; unset it, or set "
                f"{' or '.join(DETERMINISTIC_WORKSPACES)}"
            )
    torch.use_deterministic_algorithms(deterministic)
