"""pixcell train-codec."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.parser import positive_int
from diffusion.cli.signature import Here, Option, checked


@checked
def train_codec(
    source: Annotated[
        Path | None,
        Option(
            f"{options.SOURCE} [ROOT/data/demo/source]",
            metavar="FOLDER",
            group=options.DATA,
            note=", a folder that pixcell demo-data filled",
        ),
    ] = None,
    out: options.OutFolder = Path("tiny_vae"),
    workdir: Annotated[options.Workdir, Here("OUT with .run appended, until OUT is written")] = None,
    max_steps: Annotated[int, Option("optimizer steps", positive_int, group=options.TRAINING)] = 7500,
    load_from: Annotated[options.LoadFrom, Here("random ones")] = None,
    fresh: options.Fresh = False,
    accept_changes: options.AcceptChanges = False,
    batch_size: Annotated[options.BatchSize, Here("8", options.TRAINING)] = 8,
    crop: Annotated[int, Option("side of a crop in pixels", positive_int, group=options.TRAINING)] = 64,
    root: options.Root = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> int:
    """Train the small latent codec: 16 channels at an eighth of the resolution.

    It takes an hour on one core, learns from the upper three quarters of each demo image, and is scored on the bottom quarters,
    which no crop touches. Stopped, the same command goes on where it was, and the exit code is 75.

    Examples:
      pixcell train-codec --source data/demo/source --out my_codec
      pixcell train-codec --source data/demo/source --out longer --load-from my_codec --seed 1
    """
    from diffusion.tasks.codec.task import CodecConfig
    from diffusion.tasks.codec.task import train_codec as train
    from diffusion.training.parallel.preemption import EXIT_CODE
    from diffusion.utils.hardware import has_bf16, prepare_device
    from diffusion.utils.text import default_root

    place = prepare_device(device)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffusion").setLevel(logging.INFO)
    config = CodecConfig(
        source=str(source or (root or default_root()) / "data/demo/source"),
        load_from=load_from,
        max_steps=max_steps,
        train_batch_size=batch_size or 8,
        crop=crop,
        seed=seed,
        mixed_precision="bf16" if has_bf16(place) else "no",
    )
    work_dir = workdir or out.with_name(f"{out.name}.run")
    lines = list(train(config, work_dir, out, place, fresh, accept_changes))
    if not lines:
        return EXIT_CODE
    if workdir is None:  # the same command trains again
        shutil.rmtree(work_dir)
    print("\n".join(lines))
    return 0
