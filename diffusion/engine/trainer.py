"""The training run: from checked settings to weights, in one fixed order.

Letters: B batch of one process, G global batch (B * processes * accumulation). A position is a number of training
samples that all processes together have taken from the stream; it is all there is to know about the data, and about
the noise that samples get.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from diffusion.config import Config, dump_config
from diffusion.data.batch import PatchBatch
from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad, build_dataset
from diffusion.data.loader import batches_of, training_loader
from diffusion.data.sampler import BatchStream
from diffusion.engine.anomaly import listed, report
from diffusion.engine.checkpoint import FOLDER, name_last
from diffusion.engine.ema import EMA, PowerEMA
from diffusion.engine.losses import BatchLosses
from diffusion.engine.optim import build_lr_schedule, build_optimizer
from diffusion.engine.plan import Plan, check_grid, describe, plan_run, save_steps, settle_precision, settled
from diffusion.engine.processes import Agreement, on_main, told_of_lost_processes
from diffusion.engine.saving import Saver
from diffusion.engine.sharding import check_shardable, local, sharding_arguments
from diffusion.engine.start import build_network, check_same_run, choose_checkpoint, load_resumed, open_checkpoint
from diffusion.engine.state import RunState
from diffusion.engine.stops import Stop, Stops
from diffusion.engine.validation import Validation
from diffusion.engine.watch import BadItems, Meter, Watch, processor, sample_grid
from diffusion.errors import InputError
from diffusion.files import locked, remove_unfinished, written_aside
from diffusion.model.pixart import PixArt
from diffusion.seeds import mix_seed
from diffusion.timesteps import build_timestep_sampler
from diffusion.workdir import CONFIG_FILE, check_tokens, latent_scale, load_codec

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)

BAD_STEPS = "bad_steps.txt"


def train(
    config: Config,
    work_dir: Path,
    cpu: bool = False,
    fresh: bool = False,
    accept_changes: bool = False,
    time_limit: float | None = None,
) -> bool:
    """Train until the plan's last step, saving on the way, from config.resume_from or the newest state in the work dir.

    cpu: leave accelerators alone. fresh: an error instead of going on where a run is. accept_changes: go on with
    another global batch, seed or data than the run was begun with. time_limit: minutes after which to save and stop.
    Returns whether the last step is done: False when a signal or the limit stopped the run, whose state is saved.
    Raises InputError for settings that the data, the device or the work dir contradict, and for numbers gone bad.
    """
    with Stops(time_limit) as stops, told_of_lost_processes(), contextlib.ExitStack() as held:
        # ---- processes and precision
        config = settle_precision(config, cpu)
        accelerator = start_accelerator(config, cpu)
        agree = Agreement(accelerator)
        main = accelerator.is_main_process

        # ---- data
        dataset = build_dataset(**config.data_arguments, on_error=config.data.on_error)
        check_tokens(config, dataset)
        check_grid(config)
        plan = plan_run(config, len(dataset), accelerator.num_processes)
        scale = latent_scale(config)
        validation = Validation(config, scale, accelerator) if config.validation.count else None

        # ---- network, its average, and what trains it
        checkpoint = on_main(accelerator, lambda: choose_checkpoint(config, work_dir, fresh))
        own = checkpoint is not None and checkpoint.parent.resolve() == (work_dir / FOLDER).resolve()
        saved = open_checkpoint(config, checkpoint) if checkpoint else None
        if saved is not None:
            check_same_run(saved, config, dataset.identity(), plan, accept_changes)
        run, network, origin = start_run(config, plan, dataset, accelerator, saved, checkpoint)
        saved = None  # gigabytes of host memory in a large run
        dropout, kind = config.class_dropout_prob, config.prediction_type
        losses = BatchLosses(scale, kind, dropout, run.timesteps, config.min_snr_gamma)

        # ---- what a person watches; nothing has been written before this line
        codec = load_codec(config, accelerator.device) if main and config.sample_grid.count else None
        on_main(accelerator, lambda: held.enter_context(locked(work_dir / ".lock")))
        snapshot_steps = config.power_ema.snapshot_steps if config.power_ema.lengths else None
        saver = Saver(work_dir, config.keep_last, config.keep_every, snapshot_steps) if main else None
        held.enter_context(saver or contextlib.nullcontext())
        watch = Watch(work_dir, main, config.report_to, run.step)
        held.callback(watch.close)
        if main:
            remove_unfinished(work_dir / FOLDER)
            dump_config(settled(config, work_dir), work_dir / CONFIG_FILE)
            if own:
                name_last(checkpoint)  # an older one, if it was named, is what the run goes on from now
        log.info("%s", describe(config, plan, run.model, accelerator.num_processes))
        log.info("weights from %s", checkpoint or origin)
        log.info("from step %d to %d, on %s", run.step, plan.total_steps, processor(accelerator))

        def save() -> None:
            run.bad_items.settle()
            state = run.state_dict()
            if saver is not None:
                saver.save(state)

        def look() -> None:
            with averaged(run.model, run.ema):
                if validation is not None:
                    watch.validation(validation(run.model), run.step)
                if codec is not None or (accelerator.is_fsdp2 and config.sample_grid.count):  # all run it, or none
                    null_tokens = run.model.y_embedder.y_embedding
                    watch.picture("samples", sample_grid(run.model, null_tokens, dataset, codec, config), run.step)
            accelerator.wait_for_everyone()

        if not own:
            save()  # so that a full disk or a broken codec shows now, not hours later
            on_main(accelerator, lambda: saver.wait())
            look()
        if run.step >= plan.total_steps:
            log.info("nothing left to do: step %d of %d", run.step, plan.total_steps)

        # ---- the loop
        batches = start_loader(config, dataset, accelerator, run.position)
        saves = save_steps(config, plan)
        stop = Stop.NO
        network.train()
        settle_sums(run, network, losses)
        progress = held.enter_context(
            tqdm(total=plan.total_steps, initial=run.step, unit="step", disable=not main, mininterval=2)
        )
        while run.step < plan.total_steps and not stop:
            step = accumulate(run, network, losses, batches)
            wish = Stop.SAVE_FAILED if saver is not None and saver.failed else stops.wish()
            stop, bad_loss, bad_gradient = agree((wish, not step.losses_finite, not step.gradient_finite))
            if bad_loss or (bad_gradient and not run.scale_is_high):
                run.skipped_in_a_row += 1
                tell_of_bad_step(run, network, losses, step, work_dir)
            run.update(finite=not (bad_loss or bad_gradient))
            progress.update()
            if run.step % config.log_interval == 0 or run.step == plan.total_steps:
                values = run.meter.read(plan.global_batch)
                values |= {"grad_norm": float(step.grad_norm), "lr": run.lr_schedule.get_last_lr()[0]}
                values |= {"skipped_steps": run.skipped, **run.bad_items.settle()}
                watch.scalars(values, run.step, plan.total_steps, epoch=run.position / plan.samples)
                progress.set_postfix(loss=f"{values['loss']:.4f}")
            given_up = run.skipped_in_a_row >= config.max_bad_steps
            if stop != Stop.SAVE_FAILED and (stop or given_up or run.step in saves):
                save()
                if not stop and not given_up:
                    look()
            if given_up:
                break

        # ---- the end
        on_main(accelerator, lambda: saver.wait())  # all leave together: the launcher kills those that linger
        if run.skipped_in_a_row >= config.max_bad_steps:
            raise InputError(
                f"{run.skipped_in_a_row} steps in a row had a loss or gradient that is not finite; {work_dir / BAD_STEPS} "
                f"says where. The state of step {run.step} is saved. Lower the learning rate, go on from an older "
                "checkpoint (--resume-from), or extract the features of the patches named there again"
            )
        finished = run.step >= plan.total_steps
        if not finished:
            log.warning(
                "stopped by %s after step %d, saved; the same command goes on from there", stops.reason, run.step
            )
        return finished


def start_accelerator(config: Config, cpu: bool) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # accelerate knows no other name for it yet
    return Accelerator(
        cpu=cpu,
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        # the only buffers are constants, equal in all processes from the start
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        **sharding_arguments(config, cpu),
    )


def start_run(
    config: Config,
    plan: Plan,
    dataset: PanCancerData | SkipBad,
    accelerator: Accelerator,
    saved: dict[str, Any] | None,
    checkpoint: Path | None,
) -> tuple[RunState, torch.nn.Module, str]:
    """The state of a new run, or of one that was saved; the network as processes share it; where its weights are from."""
    torch.manual_seed(config.seed)  # the same initial weights in every process
    model, origin = build_network(config, None if saved else config.load_from)
    if saved is not None:
        load_resumed(model, saved, config, checkpoint)
    model.to(accelerator.device)
    if config.compile:
        for block in model.blocks:  # one graph serves all
            block.compile()
    optimizer = build_optimizer(model, config.optimizer, plan.lr)
    lr_schedule = build_lr_schedule(optimizer, config, plan.total_steps)  # not prepared: it counts optimizer steps
    network, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.is_fsdp2:  # which accelerate leaves without the autocast that it puts around any other network
        model.forward = accelerator.autocast()(model.forward)
    torch.manual_seed(mix_seed(config.seed, accelerator.process_index))
    run = RunState(
        config=config,
        data=dataset.identity(),
        model=model,
        ema=EMA(model, config.ema_rate),
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        accelerator=accelerator,
        meter=Meter(accelerator),
        bad_items=BadItems(config.data.max_bad_fraction),
        timesteps=build_timestep_sampler(**vars(config.timestep_sampling)),
        power_ema=PowerEMA(model, config.power_ema.lengths),
    )
    if saved is not None:
        run.load(saved)
    return run, network, origin


def settle_sums(run: RunState, network: torch.nn.Module, losses: BatchLosses) -> None:
    """A backward pass whose gradients are thrown away, before the first step.

    DDP sums gradients in buckets, and puts them together anew after its first backward pass. Sums in another order
    round otherwise: of three processes or more, a run that goes on would leave the one that never stopped.
    """
    config, device = run.config, run.accelerator.device
    if run.accelerator.num_processes == 1:
        return
    size, count = config.input_size, config.train_batch_size
    latents = torch.zeros(count, run.model.in_channels, size, size, device=device)
    tokens = torch.zeros(count, config.model_max_length, config.caption_channels, device=device)
    batch = PatchBatch(latents, tokens, names=[""] * count, seeds=[0] * count)
    run.accelerator.backward(losses(network, batch)["loss"].mean())
    run.optimizer.zero_grad()


@dataclass(frozen=True)
class Step:
    """The forward and backward passes of an optimizer step, before the update."""

    batches: list[PatchBatch]
    grad_norm: torch.Tensor  # before clipping
    losses_finite: bool  # of this process
    gradient_finite: bool


def accumulate(
    run: RunState, network: torch.nn.Module, losses: BatchLosses, batches: Iterator[tuple[PatchBatch, float]]
) -> Step:
    """Clipped gradients of a global batch; its losses go to the meter when all are finite."""
    accelerator, config = run.accelerator, run.config
    taken, values, learnt, waiting = [], [], [], 0.0
    for _ in range(config.gradient_accumulation_steps):
        batch, waited = next(batches)
        batch = batch.to(accelerator.device)
        with accelerator.accumulate(network):
            drawn = losses.draw(batch)
            of_batch = losses.given(network, batch, drawn)
            accelerator.backward(of_batch["loss"].mean())
        run.bad_items.add(batch)
        learnt.append(torch.stack([drawn.timestep, of_batch["loss"].detach() / drawn.weight], 1))
        run.position += config.train_batch_size * accelerator.num_processes
        taken, values, waiting = [*taken, batch], [*values, of_batch], waiting + waited
    grad_norm = local(accelerator.clip_grad_norm_(network.parameters(), config.gradient_clip))
    finite = torch.stack([of_batch["loss"].isfinite().all() for of_batch in values]).all()
    losses_finite, gradient_finite = torch.stack([finite, grad_norm.isfinite()]).tolist()  # the one wait for the device
    if run.timesteps.learns:
        told = accelerator.gather(accelerator.pad_across_processes(torch.cat(learnt), pad_index=math.nan)).cpu()
        run.timesteps.update(told[:, 0].nan_to_num().long(), told[:, 1])
    run.meter.end_step(waiting)
    if losses_finite:
        for of_batch in values:
            run.meter.add(of_batch)
    return Step(taken, grad_norm, losses_finite, gradient_finite)


def tell_of_bad_step(run: RunState, network: torch.nn.Module, losses: BatchLosses, step: Step, work_dir: Path) -> None:
    """Log the patches of a step that is left out; of the last that is borne, write a report."""
    from accelerate.utils import gather_object

    told = gather_object([([name for batch in step.batches for name in batch.names], step.losses_finite)])
    culprits = [names for names, finite in told if not finite] or [names for names, _ in told]
    names = [name for of_process in culprits for name in of_process]
    log.warning(
        "step %d skipped, %d in a row: its loss or gradient is not finite. Patches: %s",
        *(run.step + 1, run.skipped_in_a_row, listed(names)),
    )
    if run.skipped_in_a_row < run.config.max_bad_steps:
        return
    texts = gather_object([report(network, run.model, losses, step.batches)])
    if run.accelerator.is_main_process:
        parts = [f"process {i}\n{text}\n" for i, text in enumerate(texts)]
        with written_aside(work_dir / BAD_STEPS) as temporary:
            temporary.write_text(f"step {run.step + 1}, whose loss or gradient is not finite\n\n" + "\n".join(parts))


@contextlib.contextmanager
def averaged(model: PixArt, ema: EMA) -> Iterator[None]:
    """In the block, the network has its averaged weights and is in eval mode; without a second copy of it."""
    training = model.training
    model.eval()
    ema.swap(model)
    try:
        yield
    finally:
        ema.swap(model)
        model.train(training)


def start_loader(
    config: Config, dataset: PanCancerData | SkipBad, accelerator: Accelerator, position: int
) -> Iterator[tuple[PatchBatch, float]]:
    """This process's batches from a position of the stream on, with the seconds that each was waited for."""
    index, count = accelerator.process_index, accelerator.num_processes
    stream = BatchStream(len(dataset), config.train_batch_size, config.seed, index, count, position)
    loader = training_loader(dataset, stream, config.num_workers, pin_memory=accelerator.device.type == "cuda")
    return timed(loader)


def timed(loader: DataLoader) -> Iterator[tuple[PatchBatch, float]]:
    """Batches with the seconds that each was waited for."""
    batches = batches_of(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches)
        yield batch, time.perf_counter() - asked


def dry_run(
    config: Config, work_dir: Path, processes: int, cpu: bool, fresh: bool = False, accept_changes: bool = False
) -> str:
    """Check everything that can be wrong before the first step, write nothing, and say what the run would be."""
    config = settle_precision(config, cpu)
    check_shardable(config)
    dataset = build_dataset(**config.data_arguments, on_error=config.data.on_error)
    check_tokens(config, dataset)
    check_grid(config)
    latent_scale(config)
    if config.sample_grid.count:
        load_codec(config, torch.device("cpu"))
    if config.validation.count:
        check_tokens(config, build_dataset(**config.validation_arguments))
    plan = plan_run(config, len(dataset), processes)
    checkpoint = choose_checkpoint(config, work_dir, fresh)
    model, origin = build_network(config, None if checkpoint else config.load_from)
    if checkpoint:
        saved = open_checkpoint(config, checkpoint)
        check_same_run(saved, config, dataset.identity(), plan, accept_changes)
        load_resumed(model, saved, config, checkpoint)
    build_optimizer(model, config.optimizer, plan.lr)
    return f"{describe(config, plan, model, processes)}; weights from {checkpoint or origin}"
