"""The training run: from checked settings to weights, in one fixed order.

Letters: B batch of one process, G global batch (B * processes * accumulation). A position is a number of training
samples that all processes together have taken from the stream; it is all there is to know about the data, and about
the noise that samples get.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from tqdm import tqdm

from diffusion.config.files import dump_config
from diffusion.config.settings import TrainingConfig
from diffusion.data.loader import iterate_batches, training_loader
from diffusion.data.sampler import BatchStream
from diffusion.formats import CHECKPOINTS_DIR, CONFIG_FILE
from diffusion.optim.ema import EMA, PowerEMA
from diffusion.optim.lr_schedule import build_lr_schedule
from diffusion.training.checkpoints.async_saver import Saver
from diffusion.training.checkpoints.checkpoint import (
    SNAPSHOTS,
    archive_abandoned,
    last_evaluated_step,
    read_latest,
)
from diffusion.training.environment import environment_notes, start_accelerator
from diffusion.training.frozen import FrozenParameters, check_frozen_networks, freeze_parameters
from diffusion.training.monitoring.meters import BadItems, Meter
from diffusion.training.monitoring.periodic_evaluation import PeriodicEvaluation
from diffusion.training.monitoring.run_log import RunLogger
from diffusion.training.monitoring.throughput import Throughput
from diffusion.training.monitoring.trackers import check_trackers
from diffusion.training.parallel.distributed import AllReduceMax, on_main, user_errors
from diffusion.training.parallel.preemption import PreemptionHandler, StopReason
from diffusion.training.plan import (
    Plan,
    check_saves,
    describe,
    plan_notes,
    plan_run,
    resolve_precision,
    save_steps,
    snapshot_steps,
)
from diffusion.training.prefetch import DevicePrefetcher
from diffusion.training.resume import check_same_run, choose_checkpoint, open_checkpoint, resume_origin
from diffusion.training.state import RunState, seed_generators
from diffusion.training.step import BAD_STEPS_FILE, accumulate, report_bad_step, warm_up_ddp_buckets
from diffusion.training.task import Evaluation, Task, TrainingData
from diffusion.utils.errors import InputError
from diffusion.utils.files import remove_temporary_files
from diffusion.utils.hardware import describe_device
from diffusion.utils.launch import own_state
from diffusion.utils.locks import file_lock
from diffusion.utils.seeds import mix_seed
from diffusion.workdir import LOCK_FILE, check_work_dir

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import Dataset

log = logging.getLogger(__name__)


def train(
    config: TrainingConfig,
    task: Task,
    work_dir: Path,
    cpu: bool = False,
    fresh: bool = False,
    accept_changes: bool = False,
    time_limit: float | None = None,
) -> bool:
    """Train a task until the plan's last step, saving on the way; resume config.resume_from or the work dir's newest state.

    cpu: leave accelerators alone. fresh: an error instead of resuming a run. accept_changes: resume with another global
    batch, seed or data than the run was begun with. time_limit: minutes after which to save and stop.
    Returns whether the last step is done: False when a signal or the limit stopped the run, whose state is saved.
    Raises InputError for settings that the data, the device or the work dir contradict, and for numbers not finite.
    """
    with PreemptionHandler(time_limit) as preemption, user_errors(), own_state(cpu), contextlib.ExitStack() as stack:
        # ---- data, network, and all else that a run is made of; nothing is written before the work dir is acquired
        made = prepare(config, task, work_dir, cpu, fresh, accept_changes)
        config, accelerator, plan, run, network = made.config, made.accelerator, made.plan, made.run, made.network
        checkpoint = made.checkpoint
        all_reduce_max, main = AllReduceMax(accelerator), accelerator.is_main_process

        # ---- the work dir, the log and the evaluations
        on_main(accelerator, lambda: acquire_work_dir(stack, work_dir, made.latest))
        origin = on_main(accelerator, lambda: resume_origin(config.resume_from, checkpoint, made.is_own, made.latest))
        snapshots = snapshot_steps(config.power_ema, plan.total_steps)
        saver = Saver(accelerator, work_dir, config.keep_last, config.keep_every, origin, snapshots)
        stack.enter_context(saver)
        logger = RunLogger(work_dir, main, task.losses)
        stack.callback(logger.close)
        resolved = dataclasses.replace(task.resolve_config(work_dir), mixed_precision=config.mixed_precision)
        resumed, settings = checkpoint is not None and made.is_own, dataclasses.asdict(resolved)
        on_main(accelerator, lambda: logger.start_trackers(config.trackers, run.step, settings, resumed))
        if main:
            dump_config(resolved, work_dir / CONFIG_FILE)
        for note in (*environment_notes(config), *plan_notes(config, plan)):
            log.warning("%s", note)
        log.info("%s", describe_run(made, accelerator.num_processes))
        log.info("weights from %s", checkpoint or made.weights_from)
        where = describe_device(accelerator.device, accelerator.num_processes)
        log.info("from step %d to %d, on %s", run.step, plan.total_steps, where)

        saves = save_steps(config, plan)
        evaluate = PeriodicEvaluation(made.evaluations, logger, work_dir, saves | {0})
        if not resumed:
            if main:
                is_within = (
                    checkpoint is not None and checkpoint.parent.resolve() == (work_dir / CHECKPOINTS_DIR).resolve()
                )
                archive_abandoned(work_dir / CHECKPOINTS_DIR, after=run.step if is_within else -1)
            saver.save(run)
            saver.wait()  # so that a full disk shows now, not hours later
            evaluate(run)
        elif run.step in evaluate and on_main(accelerator, lambda: last_evaluated_step(work_dir)) != run.step:
            evaluate(run)  # the run was stopped between the save and this
        if run.step >= plan.total_steps:
            log.info("nothing left to do: step %d of %d", run.step, plan.total_steps)

        # ---- the loop
        throughput = Throughput.of(task.flops_per_sample(), accelerator)
        prefetcher = start_prefetcher(config, task, made.dataset, accelerator, run.position)
        stop, given_up = StopReason.NO, False
        progress = stack.enter_context(
            tqdm(total=plan.total_steps, initial=run.step, unit="step", disable=not main, mininterval=2)
        )
        network.train()
        if run.step < plan.total_steps:
            warm_up_ddp_buckets(run, network, made.dataset)
        preemption.before_first_step = False
        run.meter.start_clock()
        while run.step < plan.total_steps and not stop and not given_up:
            step = accumulate(run, network, prefetcher)
            reason = StopReason.SAVE_FAILED if saver.failed else preemption.poll()
            stop, bad_loss, bad_gradient = all_reduce_max((reason, not step.losses_finite, not step.gradient_finite))
            if bad_loss or (bad_gradient and not run.scale_is_high):
                run.skipped_in_a_row += 1
                report_bad_step(run, network, step, work_dir)
            run.update(losses_finite=not bad_loss, gradient_finite=not bad_gradient)
            progress.update()
            if run.step % config.log_interval == 0 or run.step == plan.total_steps:
                values = run.meter.read(plan.global_batch)
                values |= throughput.values(values["samples_per_second"])
                values |= {"grad_norm": float(step.grad_norm), "lr": float(run.lr_schedule.get_last_lr()[0])}
                values |= {"skipped_steps": run.skipped, **run.bad_items.synchronise()}
                logger.scalars(values, run.step, plan.total_steps, epoch=run.position / plan.samples)
                progress.set_postfix(loss=f"{values[task.losses[0]]:.4f}")
            given_up = run.skipped_in_a_row >= config.max_bad_steps
            if stop or given_up or run.step in saves:
                saver.save(run)  # or raise what the save before met
            if run.step in evaluate and (run.step == plan.total_steps or not (stop or given_up)):
                evaluate(run)

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
            reason = preemption.reason(StopReason(int(stop)))
            log.warning("stopped by %s after step %d, saved; the same command goes on from there", reason, run.step)
        return finished


def acquire_work_dir(stack: contextlib.ExitStack, work_dir: Path, latest: Mapping[str, Any]) -> None:
    """Lock the work dir and delete temporary files of processes that were killed.

    Raises InputError when another process works in it, or did since the state to resume was chosen.
    """
    stack.enter_context(file_lock(work_dir / LOCK_FILE))
    if read_latest(work_dir) != latest:
        raise InputError(f"another process went on with {work_dir} meanwhile; start the same command again")
    for folder in (work_dir / CHECKPOINTS_DIR, work_dir / CHECKPOINTS_DIR / SNAPSHOTS):
        remove_temporary_files(folder)


@dataclass(frozen=True)
class PreparedRun:
    """A run before its first step: all that it reads, and nothing written.

    latest: what the work dir's newest save says; checkpoint: what is resumed, if anything; is_own: whether the run itself
    has saved it; weights_from: where a new run's weights are from, in words; network: the model as processes share it.
    """

    config: TrainingConfig
    accelerator: Accelerator
    plan: Plan
    dataset: TrainingData
    evaluations: Sequence[Evaluation]
    latest: Mapping[str, Any]
    checkpoint: Path | None
    is_own: bool
    weights_from: str
    run: RunState
    network: torch.nn.Module


def prepare(
    config: TrainingConfig,
    task: Task,
    work_dir: Path,
    cpu: bool,
    fresh: bool,
    accept_changes: bool,
    processes: int | None = None,
) -> PreparedRun:
    """Prepare a run for its first step, and write nothing: the preamble of `train` and of `dry_run`.

    processes: how many the plan is for; None: as many as there are. For all processes together.
    Raises InputError for settings that the environment, the data, the device or the work dir contradict.
    """
    if config != task.config:
        raise ValueError("the config is not the task's own: build the task from the config to train with")
    # ---- processes and precision
    config = dataclasses.replace(config, mixed_precision=resolve_precision(config.mixed_precision, cpu))
    accelerator = start_accelerator(config, cpu, task.sharded_layers, task.unused_parameters)
    check_trackers(config.trackers)
    on_main(accelerator, lambda: check_work_dir(work_dir))

    # ---- data
    dataset = task.build_dataset()
    plan = plan_run(config, len(dataset), processes or accelerator.num_processes)
    check_saves(config, plan)
    task.check_memory(accelerator.device)

    # ---- evaluations: loaded before the generators are seeded, from which a network that is built may draw
    evaluations = task.build_evaluations(accelerator, dataset, plan.total_steps)

    # ---- network, its average, and what trains it
    latest = on_main(accelerator, lambda: read_latest(work_dir))
    # of an adapter, load_from names the network beside it, in a run that goes on, too
    begins_from = config.load_from if task.frozen_source() is None else None
    checkpoint, is_own = on_main(
        accelerator, lambda: choose_checkpoint(config.resume_from, begins_from, work_dir, fresh)
    )
    saved = open_checkpoint(checkpoint, task.name, config.optimizer.type) if checkpoint else None
    if saved is not None:
        check_same_run(
            saved,
            seed=config.seed,
            accumulation=config.gradient_accumulation_steps,
            data=dataset.identity(),
            plan=plan,
            accept=accept_changes,
        )
    run, network, weights_from = start_run(config, task, plan, dataset, accelerator, saved, checkpoint)
    shared = (config, accelerator, plan, dataset, evaluations, latest, checkpoint, is_own)
    return PreparedRun(*shared, weights_from, run, network)


def start_run(
    config: TrainingConfig,
    task: Task,
    plan: Plan,
    dataset: TrainingData,
    accelerator: Accelerator,
    saved: dict[str, Any] | None,
    checkpoint: Path | None,
) -> tuple[RunState, torch.nn.Module, str]:
    """Return the state of a new run or of a saved one, the network as processes share it, and where its weights are from."""
    torch.manual_seed(config.seed)  # the same initial weights in every process
    model, weights_from = task.build_network(None if saved else config.load_from)
    freeze_parameters(model, config.freeze, task.description[0])
    if saved is not None and checkpoint is not None:
        task.load_weights(model, saved, checkpoint)
    frozen, frozen_networks = FrozenParameters.of(model, task.frozen_source()), task.frozen_networks()
    if saved is not None and checkpoint is not None and frozen.source is not None:
        frozen.check_same(saved, checkpoint)
    model.to(accelerator.device)
    if saved is None:
        task.start(model, accelerator)
    for beside in frozen_networks.values():
        beside.network.to(accelerator.device)
        if accelerator.native_amp:  # torch's own, which lasts when the run, and with it accelerate's state, has ended
            half = torch.float16 if accelerator.mixed_precision == "fp16" else torch.bfloat16
            beside.network.forward = torch.autocast(accelerator.device.type, half)(beside.network.forward)
    if config.compile:
        task.compile(model)
    optimizer = task.build_optimizer(model, plan.lr)
    warmup = config.lr_schedule_args.num_warmup_steps
    # not prepared: it counts optimizer steps
    lr_schedule = build_lr_schedule(optimizer, config.lr_schedule, warmup, plan.total_steps)
    network, optimizer = accelerator.prepare(model, optimizer)
    if accelerator.is_fsdp2:  # which accelerate leaves without the autocast that it puts around any other network
        model.forward = accelerator.autocast()(model.forward)
    seed_generators(mix_seed(config.seed, accelerator.process_index))
    run = RunState(
        config=config,
        task=task,
        data=dataset.identity(),
        model=model,
        ema=EMA(model, config.ema_rate),
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        accelerator=accelerator,
        meter=Meter(accelerator, task.losses),
        bad_items=BadItems(task.max_bad_fraction),
        power_ema=PowerEMA(model, config.power_ema.lengths),
        frozen=frozen,
        frozen_networks=frozen_networks,
    )
    if saved is not None and checkpoint is not None:
        check_frozen_networks(saved, frozen_networks, checkpoint)
        run.load(saved)
    return run, network, weights_from


def start_prefetcher(
    config: TrainingConfig, task: Task, dataset: TrainingData, accelerator: Accelerator, position: int
) -> DevicePrefetcher:
    """Start loading this process's batches from a position of the stream on."""
    index, count = accelerator.process_index, accelerator.num_processes
    stream = BatchStream(len(dataset), config.train_batch_size, config.seed, index, count, position)
    pin_memory = accelerator.device.type == "cuda"
    samples = cast("Dataset[Any]", dataset)  # torch asks for __len__ and __getitem__ alone
    loader = training_loader(samples, task.collate, stream, config.num_workers, pin_memory)
    return DevicePrefetcher(iterate_batches(loader), accelerator.device, task.draw_randomness)


def describe_run(made: PreparedRun, processes: int) -> str:
    """Return a prepared run's numbers in words."""
    parameters = sum(parameter.numel() for parameter in made.run.model.parameters())
    words = made.run.task.description
    return describe(made.config, made.plan, words, parameters, processes, made.accelerator.is_fsdp2)


def dry_run(
    config: TrainingConfig,
    task: Task,
    work_dir: Path,
    processes: int | None = None,
    cpu: bool = False,
    fresh: bool = False,
    accept_changes: bool = False,
) -> str:
    """Prepare a run for its first step, write nothing, and return its numbers in words. Raises InputError as `train`."""
    with own_state(cpu):
        made = prepare(config, task, work_dir, cpu, fresh, accept_changes, processes)
        described = describe_run(made, processes or made.accelerator.num_processes)
        notes = [*environment_notes(made.config), *plan_notes(made.config, made.plan)]
    return "\n".join([*notes, f"{described}; weights from {made.checkpoint or made.weights_from}"])
