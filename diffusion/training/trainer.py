"""The training run: from checked settings to weights, in one fixed order.

Letters: B batch of one process, G global batch (B * processes * accumulation). A position is a number of training
samples that all processes together have taken from the stream; it is all there is to know about the data, and about
the noise that samples get.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from diffusion.components import check_dataset_tokens, load_codec, resolve_latent_scale
from diffusion.config.files import dump_config
from diffusion.config.settings import Config
from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad, build_dataset
from diffusion.data.loader import iterate_batches, training_loader
from diffusion.data.sampler import BatchStream
from diffusion.formats import CHECKPOINTS_DIR, CONFIG_FILE
from diffusion.optim.build import build_lr_schedule, build_optimizer
from diffusion.optim.ema import EMA, PowerEMA
from diffusion.timesteps import build_timestep_sampler
from diffusion.training.batch_losses import BatchLosses
from diffusion.training.checkpoints.async_saver import Saver
from diffusion.training.checkpoints.checkpoint import SNAPSHOTS, archive_abandoned, last_evaluated_step, read_latest
from diffusion.training.environment import environment_notes, start_accelerator
from diffusion.training.initial import (
    build_network,
    check_same_run,
    choose_checkpoint,
    load_resumed,
    open_checkpoint,
    resume_origin,
)
from diffusion.training.monitoring.periodic_evaluation import PeriodicEvaluation
from diffusion.training.monitoring.run_log import BadItems, Meter, RunLogger, check_grid, check_reports
from diffusion.training.monitoring.sample_scores import SampleScores, score_steps
from diffusion.training.monitoring.validation import Validation
from diffusion.training.parallel.distributed import AllReduceMax, on_main, user_errors
from diffusion.training.parallel.preemption import PreemptionHandler, StopReason
from diffusion.training.plan import (
    Plan,
    check_batch,
    check_saves,
    describe,
    plan_run,
    resolve_config,
    resolve_precision,
    save_steps,
    snapshot_steps,
)
from diffusion.training.prefetch import DevicePrefetcher
from diffusion.training.state import RunState, seed_generators
from diffusion.training.step import BAD_STEPS_FILE, accumulate, report_bad_step, warm_up_ddp_buckets
from diffusion.utils.errors import InputError
from diffusion.utils.files import remove_temporary_files
from diffusion.utils.hardware import describe_device
from diffusion.utils.locks import file_lock
from diffusion.utils.seeds import mix_seed
from diffusion.workdir import LOCK_FILE, check_work_dir

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.encoders.latents import LatentCodec


log = logging.getLogger(__name__)


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
    with PreemptionHandler(time_limit) as stops, user_errors(), contextlib.ExitStack() as held:
        # ---- data, network, and all else that a run is made of; nothing is written before `hold`
        made = prepare(config, work_dir, cpu, fresh, accept_changes)
        config, accelerator, plan, run, network = made.config, made.accelerator, made.plan, made.run, made.network
        dataset, losses, checkpoint = made.dataset, made.losses, made.checkpoint
        agree, main = AllReduceMax(accelerator), accelerator.is_main_process

        # ---- what a person watches
        on_main(accelerator, lambda: acquire_work_dir(held, work_dir, made.last))
        named = on_main(accelerator, lambda: resume_origin(config, checkpoint, made.own, made.last))
        saver = Saver(accelerator, work_dir, config.keep_last, config.keep_every, named, snapshot_steps(config, plan))
        held.enter_context(saver)
        watch = RunLogger(work_dir, main, config.report_to, run.step)
        held.callback(watch.close)
        if main:
            dump_config(resolve_config(config, work_dir), work_dir / CONFIG_FILE)
        for note in environment_notes(config):
            log.warning("%s", note)
        log.info("%s", describe(config, plan, run.model, accelerator.num_processes, accelerator.is_fsdp2))
        log.info("weights from %s", checkpoint or made.origin)
        where = describe_device(accelerator.device, accelerator.num_processes)
        log.info("from step %d to %d, on %s", run.step, plan.total_steps, where)

        saves = save_steps(config, plan)
        scored = score_steps(config, plan.total_steps)
        looks = PeriodicEvaluation(
            watch, work_dir, dataset, made.codec, made.validation, made.scores, saves | {0}, scored
        )
        if checkpoint is None or not made.own:
            if main:
                is_within = (
                    checkpoint is not None and checkpoint.parent.resolve() == (work_dir / CHECKPOINTS_DIR).resolve()
                )
                archive_abandoned(work_dir / CHECKPOINTS_DIR, after=run.step if is_within else -1)
            saver.save(run)
            saver.wait()  # so that a full disk shows now, not hours later
            looks(run)
        elif run.step in looks and on_main(accelerator, lambda: last_evaluated_step(work_dir)) != run.step:
            looks(run)  # the run was stopped between the save and this
        if run.step >= plan.total_steps:
            log.info("nothing left to do: step %d of %d", run.step, plan.total_steps)

        # ---- the loop
        supply = start_prefetcher(config, dataset, accelerator, run.position)
        stop, given_up = StopReason.NO, False
        progress = held.enter_context(
            tqdm(total=plan.total_steps, initial=run.step, unit="step", disable=not main, mininterval=2)
        )
        network.train()
        if run.step < plan.total_steps:
            warm_up_ddp_buckets(run, network, losses)
        stops.before_first_step = False
        run.meter.start_clock()
        while run.step < plan.total_steps and not stop and not given_up:
            step = accumulate(run, network, losses, supply)
            poll = StopReason.SAVE_FAILED if saver.failed else stops.poll()
            stop, bad_loss, bad_gradient = agree((poll, not step.losses_finite, not step.gradient_finite))
            if bad_loss or (bad_gradient and not run.scale_is_high):
                run.skipped_in_a_row += 1
                report_bad_step(run, network, losses, step, work_dir)
            run.update(losses_finite=not bad_loss, gradient_finite=not bad_gradient)
            progress.update()
            if run.step % config.log_interval == 0 or run.step == plan.total_steps:
                values = run.meter.read(plan.global_batch)
                values |= {"grad_norm": float(step.grad_norm), "lr": run.lr_schedule.get_last_lr()[0]}
                values |= {"skipped_steps": run.skipped, **run.bad_items.settle()}
                watch.scalars(values, run.step, plan.total_steps, epoch=run.position / plan.samples)
                progress.set_postfix(loss=f"{values['loss']:.4f}")
            given_up = run.skipped_in_a_row >= config.max_bad_steps
            if stop or given_up or run.step in saves:
                saver.save(run)  # or raise what the save before met
            if run.step in looks and (run.step == plan.total_steps or not (stop or given_up)):
                looks(run)

        # ---- the end
        saver.wait()  # all leave together: the launcher kills those that linger
        if given_up:
            raise InputError(
                f"{run.skipped_in_a_row} steps in a row had a loss or gradient that is not finite; {work_dir / BAD_STEPS_FILE} "
                f"says where. The state of step {run.step} is saved. Lower the learning rate, go on from an older "
                "checkpoint (--resume-from), or extract the features of the patches named there again"
            )
        finished = run.step >= plan.total_steps
        if not finished:
            reason = stops.reason(StopReason(int(stop)))
            log.warning("stopped by %s after step %d, saved; the same command goes on from there", reason, run.step)
        return finished


def acquire_work_dir(held: contextlib.ExitStack, work_dir: Path, last: dict[str, Any]) -> None:
    """Be the one process at work in a work dir, and clear what others that were killed have left there.

    Raises InputError when another is, or was since the state to go on from was chosen.
    """
    held.enter_context(file_lock(work_dir / LOCK_FILE))
    if read_latest(work_dir) != last:
        raise InputError(f"another process went on with {work_dir} meanwhile; start the same command again")
    for folder in (work_dir / CHECKPOINTS_DIR, work_dir / CHECKPOINTS_DIR / SNAPSHOTS):
        remove_temporary_files(folder)


@dataclass(frozen=True)
class Prepared:
    """A run before its first step: all that it reads, and nothing written.

    last: what the work dir's newest save says; checkpoint: what it goes on from, if anything; own: whether the run
    itself has come to it; origin: where a new run's weights are from.
    """

    config: Config
    accelerator: Accelerator
    plan: Plan
    dataset: PanCancerData | SkipBad
    codec: LatentCodec | None
    validation: Validation | None
    scores: SampleScores | None
    last: dict[str, Any]
    checkpoint: Path | None
    own: bool
    origin: str
    run: RunState
    network: torch.nn.Module
    losses: BatchLosses


def prepare(
    config: Config, work_dir: Path, cpu: bool, fresh: bool, accept_changes: bool, processes: int | None = None
) -> Prepared:
    """Make a run ready for its first step, and write nothing: what `train` and `dry_run` have in common.

    processes: how many the plan is for; None: as many as there are. For all processes together.
    Raises InputError for settings that the environment, the data, the device or the work dir contradict.
    """
    # ---- processes and precision
    config = resolve_precision(config, cpu)
    accelerator = start_accelerator(config, cpu)
    main = accelerator.is_main_process
    check_reports(config)
    on_main(accelerator, lambda: check_work_dir(work_dir))

    # ---- data
    dataset = build_dataset(**config.data_arguments, on_error=config.data.on_error)
    check_dataset_tokens(dataset, config.model_max_length, config.caption_channels)
    check_grid(config, dataset)
    plan = plan_run(config, len(dataset), processes or accelerator.num_processes)
    check_saves(config, plan)
    check_batch(config, accelerator.device)
    scale = resolve_latent_scale(config)

    # ---- what it is measured by: loaded before its generators begin, from which a network that is built may draw
    validation = Validation(config, scale, accelerator) if config.validation.count else None
    wanted = config.eval_steps or (main and config.sample_grid.count)
    codec = load_codec(config, accelerator.device) if wanted else None
    scores = SampleScores(config, codec, accelerator) if config.eval_steps else None

    # ---- network, its average, and what trains it
    last = on_main(accelerator, lambda: read_latest(work_dir))
    checkpoint, own = on_main(accelerator, lambda: choose_checkpoint(config, work_dir, fresh))
    saved = open_checkpoint(config, checkpoint) if checkpoint else None
    if saved is not None:
        check_same_run(saved, config, dataset.identity(), plan, accept_changes)
    run, network, origin = start_run(config, plan, dataset, accelerator, saved, checkpoint)
    losses = BatchLosses(scale, config.prediction_type, config.class_dropout_prob, run.timesteps, config.min_snr_gamma)
    shared = (config, accelerator, plan, dataset, codec, validation, scores)
    return Prepared(*shared, last, checkpoint, own, origin, run, network, losses)


def start_run(
    config: Config,
    plan: Plan,
    dataset: PanCancerData | SkipBad,
    accelerator: Accelerator,
    saved: dict[str, Any] | None,
    checkpoint: Path | None,
) -> tuple[RunState, torch.nn.Module, str]:
    """Return the state of a new run, or of one that was saved; the network as processes share it; where its weights are from."""
    torch.manual_seed(config.seed)  # the same initial weights in every process
    model, origin = build_network(config, None if saved else config.load_from)
    if saved is not None:
        load_resumed(model, saved, config, checkpoint)
    model.to(accelerator.device)
    if config.compile:
        model.compile_blocks()
    optimizer = build_optimizer(model, config.optimizer, plan.lr)
    lr_schedule = build_lr_schedule(optimizer, config, plan.total_steps)  # not prepared: it counts optimizer steps
    network, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.is_fsdp2:  # which accelerate leaves without the autocast that it puts around any other network
        model.forward = accelerator.autocast()(model.forward)
    seed_generators(mix_seed(config.seed, accelerator.process_index))
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


def start_prefetcher(
    config: Config, dataset: PanCancerData | SkipBad, accelerator: Accelerator, position: int
) -> DevicePrefetcher:
    """This process's batches from a position of the stream on."""
    index, count = accelerator.process_index, accelerator.num_processes
    stream = BatchStream(len(dataset), config.train_batch_size, config.seed, index, count, position)
    loader = training_loader(dataset, stream, config.num_workers, pin_memory=accelerator.device.type == "cuda")
    return DevicePrefetcher(iterate_batches(loader), accelerator.device)


def dry_run(
    config: Config,
    work_dir: Path,
    processes: int | None = None,
    cpu: bool = False,
    fresh: bool = False,
    accept_changes: bool = False,
) -> str:
    """Make a run ready for its first step, write nothing, and say what it would be. Raises InputError as `train`."""
    made = prepare(config, work_dir, cpu, fresh, accept_changes, processes)
    number = processes or made.accelerator.num_processes
    described = describe(made.config, made.plan, made.run.model, number, made.accelerator.is_fsdp2)
    return "\n".join([*environment_notes(made.config), f"{described}; weights from {made.checkpoint or made.origin}"])
