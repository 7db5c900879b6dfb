"""pixcell average."""

from __future__ import annotations

import sys
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.parser import positive_float, positive_int
from diffusion.cli.signature import Option, checked

MAX_MISFIT = 0.05  # of the profile's norm: beyond, what is written is an average, but hardly the one asked for


@checked
def average(
    length: Annotated[
        float,
        Option(
            "spread of the average over the steps, as a share of the run (sigma_rel): 0.02 to 0.25 is usual",
            positive_float,
        ),
    ],
    out: options.OutFile,
    workdir: options.Workdir = None,
    step: Annotated[
        int | None, Option("the step to average up to, one that has snapshots [the last]", positive_int)
    ] = None,
) -> None:
    """Average the weights of a run over any length, after training, from its snapshots.

    The run must have had power_ema set (EDM2). OUT is a file as last_ema.ckpt is, and must not be there.

    Examples:
      pixcell average --workdir output/256 --length 0.07 --out output/256/checkpoints/ema_0.070.ckpt
      pixcell average --workdir output/256 --length 0.15 --step 60000 --out ema.ckpt
    """
    from functools import partial

    from diffusion.formats import TORCH_SUFFIXES
    from diffusion.utils.errors import InputError

    if out.exists():
        raise InputError(f"{out} is already there; name a new file")
    if out.suffix not in TORCH_SUFFIXES:
        raise InputError(f"--out {out}: expected a {' or '.join(TORCH_SUFFIXES)} file")

    from tqdm import tqdm

    from diffusion.training.checkpoints.checkpoint import save_file
    from diffusion.training.checkpoints.posthoc_ema import find_mix, find_snapshots, mix_weights
    from diffusion.workdir import default_work_dir

    mix = find_mix(find_snapshots(workdir or default_work_dir()), length, step)
    if not mix.misfit <= MAX_MISFIT:
        lengths = ", ".join(f"{length:g}" for length in sorted({snapshot.length for snapshot in mix.snapshots}))
        print(
            f"warning: {len(mix.snapshots)} snapshots of length {lengths} make length {length:g} only roughly",
            file=sys.stderr,
        )
    save_file(mix_weights(mix, partial(tqdm, unit="tensor", leave=False)), out)
    print(
        f"{out}: length {mix.length:g} at step {mix.step}, of {len(mix.snapshots)} snapshots; "
        f"its profile is met to {100 * mix.misfit:.2g} %"
    )
