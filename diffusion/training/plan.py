"""What a run will be: the numbers and settings that follow from its config, its data, the machine and the work dir."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion.config.settings import Config
from diffusion.encoders.vae_files import EMBEDDED_CODECS
from diffusion.formats import LATENT_CHANNELS
from diffusion.model.pixart import PixArt
from diffusion.optim.build import learning_rate
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import has_bf16
from diffusion.utils.memory import total_bytes

MOST_SAVES = 10**6


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that follow from its settings, its data, and the number of processes."""

    samples: int
    global_batch: int
    total_steps: int
    lr: float

    @property
    def steps_per_epoch(self) -> float:
        return self.samples / self.global_batch


def plan_run(config: Config, samples: int, processes: int) -> Plan:
    global_batch = config.train_batch_size * config.gradient_accumulation_steps * processes
    whole_epochs = math.ceil(config.num_epochs * samples / global_batch)
    total_steps = whole_epochs if config.max_steps is None else config.max_steps
    return Plan(samples, global_batch, total_steps, learning_rate(config, global_batch))


def resolve_precision(config: Config, cpu: bool) -> Config:
    """The config with `auto` precision made definite. Raises InputError for fp16 where no GPU is, which has no kernels."""
    gpu = not cpu and torch.cuda.is_available()
    if config.mixed_precision == "auto":
        fast = "bf16" if has_bf16("cuda" if gpu else "cpu") else "fp16" if gpu else "no"
        return dataclasses.replace(config, mixed_precision=fast)
    if config.mixed_precision == "fp16" and not gpu and (cpu or not torch.backends.mps.is_available()):
        raise InputError("mixed_precision 'fp16' needs a GPU; on a CPU take --set mixed_precision=no (or auto)")
    return config


def check_saves(config: Config, plan: Plan) -> None:
    """Raise InputError for more saves, snapshots or scorings in a run than there can be files."""
    intervals = {"save_model_steps": config.save_model_steps, "eval_steps": config.eval_steps}
    if config.power_ema.lengths:
        intervals["power_ema.snapshot_steps"] = config.power_ema.snapshot_steps
    for name, interval in intervals.items():
        if interval is not None and plan.total_steps / interval > MOST_SAVES:
            raise InputError(
                f"{name} {interval} is {plan.total_steps // interval} times in {plan.total_steps} steps: expected at most "
                f"{MOST_SAVES} times; set a larger {name}, or fewer max_steps"
            )


def check_batch(config: Config, device: torch.device) -> None:
    """Raise InputError for a batch whose latents alone, noisy, predicted and as they are, fill more than all memory."""
    values = 5 * LATENT_CHANNELS * config.input_size**2 + config.model_max_length * config.caption_channels
    needed, there = 4 * values * config.train_batch_size, total_bytes(device)
    if there is not None and needed > there:
        raise InputError(
            f"train_batch_size {config.train_batch_size}: its latents alone take {needed / 2**30:.0f} GiB, and {device.type} "
            f"has {there / 2**30:.0f}; set a smaller one, and gradient_accumulation_steps to keep the global batch"
        )


def save_steps(config: Config, plan: Plan) -> set[int]:
    """The optimizer steps after which to save; the last is one of them."""
    steps = set(range(config.save_model_steps, plan.total_steps, config.save_model_steps)) | {plan.total_steps}
    steps |= snapshot_steps(config, plan)
    if config.save_model_epochs is not None:
        every = config.save_model_epochs * plan.steps_per_epoch
        steps |= {round(i * every) for i in range(1, int(plan.total_steps / every) + 1)}
    return steps


def snapshot_steps(config: Config, plan: Plan) -> set[int]:
    """The optimizer steps after which to keep the averages of power-function profile; the last is one of them."""
    every = config.power_ema.snapshot_steps
    steps = set(range(every, plan.total_steps, every)) | {plan.total_steps}
    return steps - {0} if config.power_ema.lengths else set()


def describe(config: Config, plan: Plan, model: PixArt, processes: int, sharded: bool = False) -> str:
    """A run's numbers, for the log and the dry run."""
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"{config.model}: {parameters / 1e6:.2f} M parameters; {plan.samples} samples of {config.image_size} pixels; "
        f"global batch {plan.global_batch} = {config.train_batch_size} x {config.gradient_accumulation_steps} accumulated "
        f"x {processes} processes{', sharded' if sharded else ''}; {plan.steps_per_epoch:.1f} steps an epoch, {plan.total_steps} steps; "
        f"{config.prediction_type}, {config.optimizer.type}, learning rate {plan.lr:g}, {config.mixed_precision} mixed precision"
    )


def resolve_config(config: Config, work_dir: Path) -> Config:
    """The config to leave in the work dir: with whole paths, so that the run can be opened from any folder."""
    root, vae = str(config.data_root.resolve()), config.vae_pretrained
    below_root = (config.data_root / vae).is_dir()  # then it moves with the data
    if vae not in EMBEDDED_CODECS and not below_root and Path(vae).is_dir():
        vae = str(Path(vae).resolve())
    data = dataclasses.replace(config.data, root=root)
    return dataclasses.replace(config, work_dir=str(work_dir.resolve()), root=root, data=data, vae_pretrained=vae)
