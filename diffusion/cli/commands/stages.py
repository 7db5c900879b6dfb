"""pixcell stages."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from diffusion.cli import options
from diffusion.cli.signature import Here, Option, checked

if TYPE_CHECKING:
    from diffusion.training.stages import Stage


@checked
def stages(
    configs: Annotated[
        Sequence[Path],
        Option(
            "config files of the stages, or names of those that come with the package, in their order", positional=True
        ),
    ],
    out: options.OutFolder,
    load_from: Annotated[options.LoadFrom, Here("what its config says", "", note=options.NANO_NOTE)] = None,
    launch: Annotated[str, Option("arguments of accelerate launch, in quotes", metavar="ARGS")] = "",
    train_options: Annotated[
        str, Option("further options of pixcell train, in quotes, such as '--batch-size 64'", metavar="ARGS")
    ] = "",
    status: Annotated[bool, Option("say where it is, train nothing")] = False,
    root: Annotated[options.Root, Here("the configs', else $PIXCELL_ROOT, else the current folder")] = None,
    seed: Annotated[options.Seed | None, Here("the configs'")] = None,
    device: options.Device = "auto",
) -> int:
    """Train stage after stage, each from the weights of the one before.

    The same command goes on where a stop left it. OUT gets a work dir for each stage, named after its config, and stages.json,
    which says which are finished. Each stage is a `pixcell train` under `accelerate launch`, and the configs of all are checked
    before the first begins.

    Examples:
      pixcell stages demo/demo_256 demo/demo_512 demo/demo_1024 --out output/demo
      pixcell stages pan_cancer/pixart_20x_256 pan_cancer/pixart_20x_512_pos_embed pan_cancer/pixart_20x_1024_pos_embed \\
          --out output/pixcell --launch "--multi_gpu --num_processes 8"
      pixcell stages demo/demo_256 demo/demo_512 --out output/demo --status
    """
    from diffusion.config.files import find_config
    from diffusion.training.stages import LOCK, RECORD, check_order, open_stages, read_record, write_record
    from diffusion.utils.locks import file_lock

    planned = open_stages([find_config(config) for config in configs], out)
    record = out / RECORD
    if status:
        print_status(planned, read_record(record))
        return 0
    with file_lock(out / LOCK):
        done = read_record(record)
        print_status(planned, done)
        for stage in planned:
            stage.check(done)
        for i, stage in enumerate(planned):
            if stage.config.stem in done:
                continue
            check_order(planned, i, done)
            start_from = load_from if stage.before is None else str(stage.before.weights)
            chosen = {"--load-from": start_from, "--root": root, "--device": device, "--seed": seed}
            code = train_stage(stage, f"stage {i + 1}", len(planned), chosen, launch, train_options)
            if code:
                return code
            done[stage.config.stem] = stage.entry
            write_record(record, done)
    print(f"weights of the last stage: {planned[-1].weights}")
    return 0


def train_stage(stage: Stage, name: str, count: int, chosen: dict[str, Any], launch: str, further: str) -> int:
    """Train one stage and say how it ended; return the exit code, which is 0 when it is done."""
    from diffusion.training.parallel.preemption import EXIT_CODE
    from diffusion.training.stages import run_trainer, trainer_command

    start = time.monotonic()
    print(f"{name} of {count}: {stage.config}", flush=True)
    code = run_trainer(trainer_command(stage, chosen, launch, further))
    if code == EXIT_CODE:
        print(f"{name} was stopped, and saved in {stage.folder}; the same command goes on from there")
        return code
    if code:
        print(
            f"error: {name}, {stage.config.stem}, ended with code {code}; what it saved is in {stage.folder}, "
            "and the same command goes on from there",
            file=sys.stderr,
        )
        return code if code > 0 else 128 - code
    print(f"{name} of {count}: done in {(time.monotonic() - start) / 60:.1f} min", flush=True)
    return 0


def print_status(planned: Sequence[Stage], done: dict[str, Any]) -> None:
    """Print a line about each stage."""
    for i, stage in enumerate(planned):
        print(f"{i + 1} of {len(planned)}  {stage.config.stem:<32} {stage.state(done):<24} {stage.folder}", flush=True)
