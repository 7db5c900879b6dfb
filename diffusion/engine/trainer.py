"""The training run: from checked settings to weights, in one fixed order.

Letters: B batch of one process, G global batch (B * processes * accumulation). A position is a number of training
samples that all processes together have taken from the stream; it is all there is to know about the data.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.func import functional_call
from torch.utils.data import DataLoader
from tqdm import tqdm

from diffusion.config import Config, dump_config
from diffusion.data.batch import PatchBatch
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.loader import batches_of, training_loader
from diffusion.data.sampler import BatchStream
from diffusion.encoders.latents import LatentScale
from diffusion.engine.checkpoint import (
    FOLDER,
    LAST_EMA,
    checkpoint_path,
    restore,
    run_state,
    save_file,
)
from diffusion.engine.ema import EMA
from diffusion.engine.optim import build_lr_schedule, build_optimizer
from diffusion.engine.plan import check_grid, describe, plan_run, save_steps, settle_precision, settled
from diffusion.engine.start import build_network, choose_checkpoint, load_resumed, open_checkpoint
from diffusion.engine.watch import BadItems, Meter, Watch, processor, sample_grid
from diffusion.errors import InputError
from diffusion.guidance import Network
from diffusion.model.pixart import PixArt
from diffusion.objective import training_losses
from diffusion.schedule import TIMESTEPS
from diffusion.seeds import mix_seed
from diffusion.workdir import CONFIG_FILE, check_tokens, latent_scale, load_codec

log = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 50  # in a row; a scaler that starts at 65536 has no lower scale to try long before


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
    dataset = build_dataset(**config.data_arguments, on_error=config.data.on_error)
    check_tokens(config, dataset)
    check_grid(config)
    plan = plan_run(config, len(dataset), accelerator.num_processes)
    scale = latent_scale(config)

    # ---- network, its average, and what trains it
    checkpoint = choose_checkpoint(config, work_dir)
    resumed = open_checkpoint(config, checkpoint) if checkpoint else None
    torch.manual_seed(config.seed)  # the same initial weights in every process
    model, origin = build_network(config, None if resumed else config.load_from)
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
    log.info("weights from %s", checkpoint or origin)
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
    bad_items = BadItems(config.data.max_bad_fraction)
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
            bad_items.add(batch)
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
                values |= bad_items.settle()
                watch.scalars(values, step, plan.total_steps, epoch=position / plan.samples)
                progress.set_postfix(loss=f"{values['loss']:.4f}")
            if step in saves or step == plan.total_steps:
                save()
            if step == plan.total_steps:
                break
    watch.close()
    accelerator.end_training()


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


def timed(loader: DataLoader) -> Iterator[tuple[PatchBatch, float]]:
    """Batches with the seconds that each was waited for."""
    batches = batches_of(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches)
        yield batch, time.perf_counter() - asked


def dry_run(config: Config, work_dir: Path, processes: int, cpu: bool) -> str:
    """Check everything that can be wrong before the first step, write nothing, and say what the run would be."""
    config = settle_precision(config, cpu)
    dataset = build_dataset(**config.data_arguments, on_error=config.data.on_error)
    check_tokens(config, dataset)
    check_grid(config)
    latent_scale(config)
    if config.sample_grid.count:
        load_codec(config, torch.device("cpu"))
    plan = plan_run(config, len(dataset), processes)
    checkpoint = choose_checkpoint(config, work_dir)
    model, origin = build_network(config, None if checkpoint else config.load_from)
    if checkpoint:
        load_resumed(model, open_checkpoint(config, checkpoint), config, checkpoint)
    build_optimizer(model, config.optimizer, plan.lr)
    return f"{describe(config, plan, model, processes)}; weights from {checkpoint or origin}"
