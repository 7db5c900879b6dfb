"""Training from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.config.files import find_config, load_config
from diffusion.config.settings import TrainingConfig
from diffusion.tasks.registry import CONFIGS, build_task
from diffusion.training.trainer import train as train_task
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import prepare_device

if TYPE_CHECKING:
    import torch


def train(
    config: str | Path | TrainingConfig,
    workdir: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "auto",
    fresh: bool = False,
    accept_changes: bool = False,
    time_limit: float | None = None,
) -> bool:
    """Train in this process what a config describes; in a work dir with a run, resume that. Returns whether it is finished.

    config: a file, the name of one that comes with the package, or settings made in Python. settings: keys of the file to
    set, such as {"optimizer.lr": 1e-4}. fresh: an error instead of resuming. accept_changes: resume with another global batch,
    seed or data. time_limit: minutes after which to save and stop. device: auto, cpu, cuda or mps. Several processes are
    started by `accelerate launch -m pixcell train`. Raises MissingError, InputError.

    Examples:
        >>> train("config.py", "output/new", {"max_steps": 2, "mixed_precision": "no"}, device="cpu")
        True
    """
    if isinstance(config, TrainingConfig):
        if settings:
            raise InputError("settings are of a config file; change those of a config by dataclasses.replace")
        chosen = config
    else:
        chosen = load_config(find_config(config), dict(settings or {}), CONFIGS)
    place = prepare_device(device)
    if place.index is not None:
        raise InputError(f"device {place}: a training run takes its GPUs from CUDA_VISIBLE_DEVICES; take device='cuda'")
    if time_limit is not None and not time_limit > 0:
        raise InputError(f"time_limit {time_limit}: expected minutes, more than 0")
    cpu = place.type == "cpu"
    return train_task(chosen, build_task(chosen), Path(workdir), cpu, fresh, accept_changes, time_limit)
