"""The training run: from checked settings to weights, in one fixed order.

Letters: B batch of one process, G global batch (B * processes * accumulation). A position is a number of training
samples that all processes together have taken from the stream; it is all there is to know about the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call
from torch.utils.data import DataLoader
from tqdm import tqdm

from diffusion.config import Config, dump_config
from diffusion.data.batch import PatchBatch
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.loader import batches_of, training_loader
from diffusion.data.sampler import BatchStream
from diffusion.encoders.latents import EMBEDDED_CODECS, LatentScale
from diffusion.engine.checkpoint import (
    FOLDER,
    LAST_EMA,
    checkpoint_path,
    find_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    restore,
    run_state,
    save_file,
)
from diffusion.engine.ema import EMA
from diffusion.engine.optim import build_lr_schedule, build_optimizer, learning_rate
from diffusion.engine.watch import GRID_ALGORITHM, Meter, Watch, processor, sample_grid
from diffusion.errors import InputError
from diffusion.guidance import Network
from diffusion.model.convert import check_told, load_into, load_weights, told_by
from diffusion.model.local_start import look_at_neighbours
from diffusion.model.pixart import PixArt, build_model
from diffusion.objective import training_losses
from diffusion.precision import has_bf16
from diffusion.sampling import make_scheduler
from diffusion.schedule import TIMESTEPS
from diffusion.seeds import mix_seed
from diffusion.workdir import CONFIG_FILE, check_tokens, latent_scale, load_codec

log = logging.getLogger(__name__)

# what follows from the architecture alone is made anew, whatever the weights to start from say
REMADE = frozenset({"pos_embed", "y_pos_embed"})
# in what the network of one stage may differ from the weights of the stage before
OF_THE_STAGE = frozenset({"input_size", "pe_interpolation", "model_max_length", "use_cond_pos_embed"})
MAX_SKIPPED_STEPS = 50  # in a row; a scaler that starts at 65536 has no lower scale to try long before


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


def train(config: Config, work_dir: Path, cpu: bool = False) -> None:
    """Train until the plan's last step, saving on the way; continues from config.resume_from.

    cpu: leave accelerators alone. Raises InputError for settings that the data, the device or the work dir contradict.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # ---- processes and precision
    config = settle_precision(config, cpu)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # the only buffers are constants, equal in all processes from the start
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )

    # ---- data
    dataset = build_dataset(**config.data_arguments)
    check_tokens(config, dataset)
    check_grid(config)
    plan = plan_run(config, len(dataset), accelerator.num_processes)
    scale = latent_scale(config)

    # ---- network, its average, and what trains it
    checkpoint = choose_checkpoint(config, work_dir)
    resumed = open_checkpoint(config, checkpoint) if checkpoint else None
    torch.manual_seed(config.seed)  # the same initial weights in every process
    model = build_network(config, None if resumed else config.load_from)
    if resumed is not None:
        load_resumed(model, resumed, config, checkpoint)
    ema = EMA(model.to(accelerator.device), config.ema_rate)
    optimizer = build_optimizer(model, config.optimizer, plan.lr)
    lr_schedule = build_lr_schedule(optimizer, config, plan.total_steps)  # not prepared: it counts optimizer steps
    network, optimizer = accelerator.prepare(model, optimizer)
    # from here on every process draws its own noise, timesteps and dropped conditions
    torch.manual_seed(mix_seed(config.seed, accelerator.process_index))
    step, position = 0, 0
    if resumed is not None:
        step, position = restore(resumed, ema, optimizer, lr_schedule, accelerator)
        resumed = None  # gigabytes of host memory in a large run

    # ---- what a person watches; nothing has been written before this line
    main = accelerator.is_main_process
    codec = load_codec(config, accelerator.device) if main and config.sample_grid.count else None
    watch = Watch(work_dir, main, config.report_to)
    if main:
        dump_config(settled(config, work_dir), work_dir / CONFIG_FILE)
    log.info("%s", describe(config, plan, model, accelerator.num_processes))
    log.info("weights from %s", checkpoint or config.load_from or f"seed {config.seed}")
    log.info("from step %d to %d, on %s", step, plan.total_steps, processor(accelerator))

    def save() -> None:
        state = run_state(
            model=model,
            ema=ema,
            prediction_type=config.prediction_type,
            optimizer_type=config.optimizer.type,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            step=step,
            position=position,
            accelerator=accelerator,
        )
        if main:
            save_file(state, checkpoint_path(work_dir, step))
            averages = {name: tensor.cpu() for name, tensor in ema.tensors.items()}  # to be read on any machine
            told = {name: state[name] for name in ("architecture", "prediction_type", "step")}
            save_file({"state_dict": averages, **told}, work_dir / FOLDER / LAST_EMA)
            log.info("saved %s and %s", checkpoint_path(work_dir, step).name, LAST_EMA)
        if codec is not None:
            with averaged(model, ema) as averaged_network:
                null_tokens = ema.tensors["y_embedder.y_embedding"]
                pixels = sample_grid(averaged_network, null_tokens, dataset, codec, config)
                watch.picture("samples", pixels, step)
        accelerator.wait_for_everyone()

    if checkpoint is None:
        save()  # so that a full disk or a broken codec shows now, not hours later
    if step >= plan.total_steps:
        log.info("nothing left to do: step %d of %d", step, plan.total_steps)

    # ---- the loop
    stream = BatchStream(
        len(dataset),
        config.train_batch_size,
        config.seed,
        accelerator.process_index,
        accelerator.num_processes,
        position,
    )
    loader = training_loader(dataset, stream, config.num_workers, pin_memory=accelerator.device.type == "cuda")
    meter = Meter(accelerator)
    saves = save_steps(config, plan)
    skipped = 0  # optimizer steps in a row that the fp16 scaler refused
    network.train()
    with tqdm(total=plan.total_steps, initial=step, unit="step", disable=not main, mininterval=2) as progress:
        for batch, waited in timed(loader) if step < plan.total_steps else ():
            with accelerator.accumulate(network):
                losses = batch_losses(network, batch.to(accelerator.device), scale, config.prediction_type)
                accelerator.backward(losses["loss"].mean())
                position += config.train_batch_size * accelerator.num_processes
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(network.parameters(), config.gradient_clip)
                    check_finite(grad_norm, skipped, config, step, batch)
                optimizer.step()
                optimizer.zero_grad()
            meter.add(losses, waited)
            if not accelerator.sync_gradients:
                continue
            skipped = skipped + 1 if accelerator.optimizer_step_was_skipped else 0
            if not skipped:
                lr_schedule.step()
                ema.update(model)
            step += 1
            progress.update()
            if step % config.log_interval == 0 or step == plan.total_steps:
                values = meter.read(plan.global_batch)
                values |= {"grad_norm": float(grad_norm), "lr": lr_schedule.get_last_lr()[0]}
                watch.scalars(values, step, plan.total_steps, epoch=position / plan.samples)
                progress.set_postfix(loss=f"{values['loss']:.4f}")
            if step in saves or step == plan.total_steps:
                save()
            if step == plan.total_steps:
                break
    watch.close()
    accelerator.end_training()


def settled(config: Config, work_dir: Path) -> Config:
    """The config to leave in the work dir: with whole paths, so that the run can be opened from any folder."""
    root, vae = str(config.data_root.resolve()), config.vae_pretrained
    below_root = (config.data_root / vae).is_dir()  # then it moves with the data
    if vae not in EMBEDDED_CODECS and not below_root and Path(vae).is_dir():
        vae = str(Path(vae).resolve())
    data = dataclasses.replace(config.data, root=root)
    return dataclasses.replace(config, work_dir=str(work_dir.resolve()), root=root, data=data, vae_pretrained=vae)


def settle_precision(config: Config, cpu: bool) -> Config:
    """The config with `auto` precision made definite. Raises InputError for fp16 where no GPU is, which has no kernels."""
    gpu = not cpu and torch.cuda.is_available()
    if config.mixed_precision == "auto":
        fast = "bf16" if has_bf16("cuda" if gpu else "cpu") else "fp16" if gpu else "no"
        return dataclasses.replace(config, mixed_precision=fast)
    if config.mixed_precision == "fp16" and not gpu and (cpu or not torch.backends.mps.is_available()):
        raise InputError("mixed_precision 'fp16' needs a GPU; on a CPU take --set mixed_precision=no (or auto)")
    return config


def check_grid(config: Config) -> None:
    """Raises InputError, before anything is written, for steps that the sample grids' solver cannot take."""
    if config.sample_grid.count:
        make_scheduler(GRID_ALGORITHM, config.sample_grid.steps)


def build_network(config: Config, load_from: str | None) -> PixArt:
    """A new network, or one that starts from weights, without the config's `ignore_keys` of them.

    Raises InputError when a part to freeze is not there, or none is left to train.
    """
    model = build_model(config.model, **config.model_arguments)
    model.grad_checkpointing = config.grad_checkpointing
    for part in config.freeze:
        frozen = [weight for name, weight in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not frozen:
            raise InputError(f"freeze {part!r}: {config.model} has no part of that name with weights")
        for weight in frozen:
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise InputError(f"freeze {config.freeze}: nothing is left to train")
    if config.local_start:
        look_at_neighbours(model)
    if load_from is not None:
        own, weights = model.state_dict(), load_weights(load_from)
        check_told(weights.told, model, config.prediction_type, load_from, but=OF_THE_STAGE)
        left = REMADE | set(config.ignore_keys)
        taken = {name: tensor for name, tensor in weights.state_dict.items() if name not in left}
        load_into(model, taken | {name: own[name] for name in own if name in left}, load_from)
    return model


def choose_checkpoint(config: Config, work_dir: Path) -> Path | None:
    """What to resume from, or None for a new run. Raises InputError rather than write over a run that is there."""
    if config.resume_from is not None:
        return find_checkpoint(config.resume_from, work_dir)
    present = newest_checkpoint(work_dir)
    if present is not None:
        raise InputError(
            f"{work_dir} already holds a run ({present.name}); continue it with --resume-from auto, or name another --work-dir"
        )
    return None


def open_checkpoint(config: Config, path: Path) -> dict[str, Any]:
    """A state to go on from. Raises InputError when another optimizer left it."""
    state = load_checkpoint(path)
    if state["optimizer_type"] != config.optimizer.type:
        raise InputError(f"{path} is of a run with {state['optimizer_type']}, the config has {config.optimizer.type}")
    return state


def load_resumed(model: PixArt, state: dict[str, Any], config: Config, path: Path) -> None:
    """The network's own part of a state. Raises InputError for a state of another network."""
    check_told(told_by(state), model, config.prediction_type, path)
    load_into(model, state["model"], path)


def batch_losses(
    network: torch.nn.Module, batch: PatchBatch, scale: LatentScale, prediction_type: str
) -> dict[str, torch.Tensor]:
    """Losses (B,) of one batch at timesteps drawn uniformly."""
    timestep = torch.randint(TIMESTEPS, (len(batch.names),), device=batch.latents.device)
    latents = scale.to_network(batch.latents)
    return training_losses(network, latents, timestep, batch.tokens, prediction_type=prediction_type)


def check_finite(grad_norm: torch.Tensor, skipped: int, config: Config, step: int, batch: PatchBatch) -> None:
    """A gradient that is no number would spoil every weight. Raises InputError naming the patches.

    Under fp16 the scaler skips such a step and lowers its scale, which is right unless it goes on and on.
    """
    if torch.isfinite(grad_norm) or (config.mixed_precision == "fp16" and skipped < MAX_SKIPPED_STEPS):
        return
    raise InputError(
        f"the gradient of step {step + 1} is not finite; the weights are those of the last checkpoint. "
        f"Patches: {', '.join(batch.names[:4])}. Lower the learning rate, or extract the features of these again"
    )


@contextlib.contextmanager
def averaged(model: PixArt, ema: EMA) -> Iterator[Network]:
    """The network with its averaged weights, in eval mode, without a second copy of it."""
    training = model.training
    model.eval()
    try:
        yield lambda *inputs: functional_call(model, ema.tensors, inputs)
    finally:
        model.train(training)


def save_steps(config: Config, plan: Plan) -> set[int]:
    """The optimizer steps after which to save."""
    steps = set(range(config.save_model_steps, plan.total_steps + 1, config.save_model_steps))
    if config.save_model_epochs is not None:
        every = config.save_model_epochs * plan.steps_per_epoch
        steps |= {round(i * every) for i in range(1, int(plan.total_steps / every) + 1)}
    return steps


def timed(loader: DataLoader) -> Iterator[tuple[PatchBatch, float]]:
    """Batches with the seconds that each was waited for."""
    batches = batches_of(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches)
        yield batch, time.perf_counter() - asked


def describe(config: Config, plan: Plan, model: PixArt, processes: int) -> str:
    """A run's numbers, for the log and the dry run."""
    parameters = sum(p.numel() for p in model.parameters())
    return (
        f"{config.model}: {parameters / 1e6:.2f} M parameters; {plan.samples} samples of {config.image_size} pixels; "
        f"global batch {plan.global_batch} = {config.train_batch_size} x {config.gradient_accumulation_steps} accumulated "
        f"x {processes} processes; {plan.steps_per_epoch:.1f} steps an epoch, {plan.total_steps} steps; "
        f"{config.prediction_type}, {config.optimizer.type}, learning rate {plan.lr:g}, {config.mixed_precision} mixed precision"
    )


def dry_run(config: Config, work_dir: Path, processes: int, cpu: bool) -> str:
    """Check everything that can be wrong before the first step, write nothing, and say what the run would be."""
    config = settle_precision(config, cpu)
    dataset = build_dataset(**config.data_arguments)
    check_tokens(config, dataset)
    check_grid(config)
    latent_scale(config)
    if config.sample_grid.count:
        load_codec(config, torch.device("cpu"))
    plan = plan_run(config, len(dataset), processes)
    checkpoint = choose_checkpoint(config, work_dir)
    model = build_network(config, None if checkpoint else config.load_from)
    if checkpoint:
        load_resumed(model, open_checkpoint(config, checkpoint), config, checkpoint)
    build_optimizer(model, config.optimizer, plan.lr)
    start = checkpoint or config.load_from or f"seed {config.seed}"
    return f"{describe(config, plan, model, processes)}; weights from {start}"
