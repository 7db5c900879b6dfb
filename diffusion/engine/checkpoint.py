"""Checkpoint files of a run: `checkpoints/step_<n>.ckpt` with all that training needs, `last_ema.ckpt` with the weights to use.

All are torch files of tensors and plain values, which read back without unpickling.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffusion.engine.ema import EMA
from diffusion.errors import InputError, MissingError
from diffusion.files import written_aside
from diffusion.model.architecture import architecture_of
from diffusion.model.pixart import PixArt
from diffusion.weights import read_torch_file

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "checkpoints"
LAST_EMA = "last_ema.ckpt"


def checkpoint_path(work_dir: Path, step: int) -> Path:
    return work_dir / FOLDER / f"step_{step:08d}.ckpt"


def save_file(content: Any, path: Path) -> None:
    """torch.save written aside, flushed to disk, and renamed: a reader sees the old file or the new one whole."""
    with written_aside(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in a work dir or a checkpoints folder; None when there is none."""
    found = {}
    for place in (folder, folder / FOLDER):
        for path in place.glob("step_*.ckpt"):
            if match := re.fullmatch(r"step_(\d+)\.ckpt", path.name):
                found[int(match[1])] = path
    return found[max(found)] if found else None


def find_checkpoint(resume_from: str, work_dir: Path) -> Path | None:
    """What --resume-from names: a file, a folder (its newest), or `auto`, the newest of the work dir or None.

    Raises MissingError when a file or folder named is not there or holds no checkpoint.
    """
    if resume_from == "auto":
        return newest_checkpoint(work_dir)
    path = Path(resume_from)
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingError(f"no checkpoint at {path}; name a file, a folder, or auto")
    newest = newest_checkpoint(path)
    if newest is None:
        raise MissingError(f"no step_<n>.ckpt in {path} or {path / FOLDER}")
    return newest


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint, on the CPU. Raises MissingError, InputError."""
    content = read_torch_file(path)
    wanted = {"model", "ema", "optimizer_type", "optimizer", "lr_schedule", "step", "position", "rng"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise MissingError(
            f"{path} holds weights but no state of a training run; use --load-from to start from its weights"
        )
    return content


def run_state(
    model: PixArt,
    ema: EMA,
    prediction_type: str,
    optimizer_type: str,
    optimizer: Optimizer,
    lr_schedule: LRScheduler,
    step: int,
    position: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Everything the next step depends on; the same on every process, so that one file serves all."""
    from accelerate.utils import gather_object

    scaler = accelerator.scaler
    return {
        "model": model.state_dict(),
        "ema": ema.tensors,
        "architecture": architecture_of(model),
        "prediction_type": prediction_type,
        "optimizer_type": optimizer_type,
        "optimizer": optimizer.state_dict(),
        "lr_schedule": lr_schedule.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "step": step,
        "position": position,
        "rng": gather_object([random_state(accelerator.device)]),
    }


def restore(
    state: dict[str, Any], ema: EMA, optimizer: Optimizer, lr_schedule: LRScheduler, accelerator: Accelerator
) -> tuple[int, int]:
    """Put a state back (the network's weights are loaded already) and answer its step and position.

    The learning rate stays the one that the optimizer was built with, so that a run can go on at another.
    """
    peak_rates = list(lr_schedule.base_lrs)  # of the config; loading puts the checkpoint's in their place
    ema.load(state["ema"])
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise InputError(
            f"the checkpoint's optimizer groups other parameters than this one ({error}); start a new run"
        ) from None
    lr_schedule.load_state_dict(state["lr_schedule"])
    lr_schedule.base_lrs = peak_rates
    for group, peak, factor in zip(optimizer.param_groups, peak_rates, lr_schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = peak, peak * factor(lr_schedule.last_epoch)
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    if len(state["rng"]) == accelerator.num_processes:  # another number of processes has no states to go on from
        set_random_state(state["rng"][accelerator.process_index], accelerator.device)
    return state["step"], state["position"]


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """torch's generators of this process: all that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])
