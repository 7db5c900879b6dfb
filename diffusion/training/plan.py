"""What a run will be: the numbers and settings that follow from its config, its data, the machine and the work dir."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diffusion.config.settings import PowerEmaConfig, TrainingConfig
from diffusion.optim.lr_schedule import scale_learning_rate
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import has_bf16

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
        """Return the optimizer steps of an epoch, which may be a fraction."""
        return self.samples / self.global_batch


def plan_run(config: TrainingConfig, samples: int, processes: int) -> Plan:
    """Plan a run over so many samples, by so many processes."""
    global_batch = config.train_batch_size * config.gradient_accumulation_steps * processes
    whole_epochs = math.ceil(config.num_epochs * samples / global_batch)
    total_steps = whole_epochs if config.max_steps is None else config.max_steps
    rule = None if config.auto_lr is None else config.auto_lr["rule"]
    lr = scale_learning_rate(config.optimizer.lr, rule, global_batch)
    return Plan(samples, global_batch, total_steps, lr)


def plan_notes(config: TrainingConfig, plan: Plan) -> list[str]:
    """Return lines about what of the plan is hardly meant: a warm-up that the run is too short for."""
    warmup = config.lr_schedule_args.num_warmup_steps
    if not 0 < plan.total_steps <= warmup:
        return []
    reached = plan.lr * plan.total_steps / warmup
    return [
        f"a warm-up of {warmup} steps in a run of {plan.total_steps}: the learning rate reaches {reached:.3g} at most, not "
        f"{plan.lr:g}; set a smaller lr_schedule_args.num_warmup_steps, or more max_steps"
    ]


def resolve_precision(precision: str, cpu: bool) -> str:
    """Return the precision that `auto` is on this machine. Raises InputError for fp16 without a GPU, which has no kernels."""
    gpu = not cpu and torch.cuda.is_available()
    if precision == "auto":
        return "bf16" if has_bf16("cuda" if gpu else "cpu") else "fp16" if gpu else "no"
    if precision == "fp16" and not gpu and (cpu or not torch.backends.mps.is_available()):
        raise InputError("mixed_precision 'fp16' needs a GPU; on a CPU take --set mixed_precision=no (or auto)")
    return precision


def check_saves(config: TrainingConfig, plan: Plan) -> None:
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


def save_steps(config: TrainingConfig, plan: Plan) -> set[int]:
    """Return the optimizer steps after which to save; the last is one of them."""
    steps = set(range(config.save_model_steps, plan.total_steps, config.save_model_steps)) | {plan.total_steps}
    steps |= snapshot_steps(config.power_ema, plan.total_steps)
    if config.save_model_epochs is not None:
        every = config.save_model_epochs * plan.steps_per_epoch
        steps |= {round(i * every) for i in range(1, int(plan.total_steps / every) + 1)}
    return steps


def snapshot_steps(settings: PowerEmaConfig, total_steps: int) -> set[int]:
    """Return the optimizer steps after which to keep the averages of power-function profile; the last is one of them."""
    steps = set(range(settings.snapshot_steps, total_steps, settings.snapshot_steps)) | {total_steps}
    return steps - {0} if settings.lengths else set()


def describe(
    config: TrainingConfig,
    plan: Plan,
    words: tuple[str, str, str],
    parameters: int,
    processes: int,
    sharded: bool = False,
) -> str:
    """Return a run's numbers in words, for the log and the dry run; words: a task's description, parameters: how many."""
    network, samples, objective = words
    return (
        f"{network}: {parameters / 1e6:.2f} M parameters; {plan.samples} {samples}; "
        f"global batch {plan.global_batch} = {config.train_batch_size} x {config.gradient_accumulation_steps} accumulated "
        f"x {processes} processes{', sharded' if sharded else ''}; {plan.steps_per_epoch:.1f} steps an epoch, {plan.total_steps} steps; "
        f"{objective}, {config.optimizer.type}, learning rate {plan.lr:g}, {config.mixed_precision} mixed precision"
    )
