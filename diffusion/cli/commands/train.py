"""pixcell train."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import positive_float
from diffusion.cli.signature import Here, Option, checked

LONGEST_WAIT = timedelta(minutes=30)  # of a process for another: a lost machine is noticed after so long


@checked
def train(
    config: Annotated[
        Path,
        Option(
            "a Python config file, or the name of one that comes with the package, such as demo/demo_256; "
            "configs/_base_.py explains every key",
            positional=True,
        ),
    ],
    workdir: Annotated[options.Workdir, Here("output/<name of the config>")] = None,
    root: Annotated[options.Root, Here("the config's, else $PIXCELL_ROOT, else the current folder")] = None,
    resume_from: Annotated[
        str | None,
        Option(
            "go on from a checkpoint file, or the newest whole one of a folder [auto: of the work dir, if it has a run]",
            metavar="X",
            group=options.TRAINING,
            completes="file",
        ),
    ] = None,
    fresh: options.Fresh = False,
    accept_changes: options.AcceptChanges = False,
    time_limit: Annotated[
        float | None,
        Option(
            "save, stop and exit with code 75 after so long; the same command goes on",
            positive_float,
            metavar="MINUTES",
            group=options.TRAINING,
        ),
    ] = None,
    load_from: Annotated[options.LoadFrom, Here(note=options.NANO_NOTE)] = None,
    batch_size: Annotated[options.BatchSize, Here("the config's train_batch_size", options.TRAINING)] = None,
    report_to: Annotated[
        Sequence[Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]] | None,
        Option("where curves and pictures go, also several places [the config's]", group=options.TRAINING),
    ] = None,
    seed: Annotated[options.Seed | None, Here("the config's")] = None,
    device: options.Device = "auto",
    set_: Annotated[
        Sequence[str],
        Option(
            "any other keys of the config, such as max_steps=10 optimizer.lr=1e-4",
            metavar="KEY=VALUE",
            group=options.TRAINING,
        ),
    ] = (),
    dry_run: Annotated[options.DryRun, Here("no step is taken, nothing written", options.TRAINING)] = False,
) -> int:
    """Train a diffusion transformer on the latents and embeddings of indexed patches.

    A work dir that has a run already goes on with it, from its newest whole checkpoint. A run that a signal or the time limit
    stopped has saved, and its exit code is 75.

    Examples:
      pixcell train demo/demo_256 --device cpu --set max_steps=10 optimizer.lr=1e-4
      pixcell train pan_cancer/pixart_20x_256 --root /data/pixcell --dry-run
      accelerate launch -m pixcell train pan_cancer/pixart_20x_256 --workdir output/256 --time-limit 470
    """
    from diffusion.config.files import find_config, load_config, parse_override
    from diffusion.training.parallel.preemption import CODE_FILE, EXIT_CODE
    from diffusion.utils.files import atomic_write_bytes
    from diffusion.utils.hardware import prepare_device
    from diffusion.utils.launch import start_processes

    place = prepare_device(device)
    state = start_processes(place, LONGEST_WAIT)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffusion").setLevel(logging.INFO if state.is_main_process else logging.ERROR)
    given = {
        "work_dir": None if workdir is None else str(workdir),
        "root": None if root is None else str(root),
        "data.root": None if root is None else str(root),
        "resume_from": resume_from,
        "load_from": load_from,
        "train_batch_size": batch_size,
        "report_to": report_to,
        "seed": seed,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    with state.main_process_first():  # yapf, of mmengine, writes a cache when first imported
        from diffusion.tasks.registry import CONFIGS, build_task

        settings = load_config(find_config(config), overrides | dict(parse_override(text) for text in set_), CONFIGS)
    work_dir = Path(settings.work_dir or Path("output") / config.stem)

    from tqdm.contrib.logging import logging_redirect_tqdm

    from diffusion.training import trainer

    cpu, task = place.type == "cpu", build_task(settings)
    if dry_run:
        state.print(trainer.dry_run(settings, task, work_dir, state.num_processes, cpu, fresh, accept_changes))
        state.print(f"would write to {work_dir}; nothing was written")
        state.destroy_process_group()
        return 0
    with logging_redirect_tqdm():
        finished = trainer.train(settings, task, work_dir, cpu, fresh, accept_changes, time_limit)
    state.destroy_process_group()
    code = 0 if finished else EXIT_CODE
    if CODE_FILE in os.environ:
        atomic_write_bytes(Path(os.environ[CODE_FILE]), f"{code}\n".encode())
    return code
