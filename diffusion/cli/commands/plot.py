"""pixcell plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.parser import natural_int
from diffusion.cli.signature import Option, checked


@checked
def plot(
    workdirs: Annotated[
        Sequence[Path], Option("work dir of a run, with tensorboard/ in it", metavar="WORKDIR", positional=True)
    ],
    out: options.OutFile = Path("curves.png"),
    tags: Annotated[
        Sequence[str] | None,
        Option("TensorBoard tags to draw, a panel each, instead of the usual ones", metavar="TAG"),
    ] = None,
    log: Annotated[bool, Option("logarithmic axes for losses")] = False,
    from_step: Annotated[int, Option("first step that is drawn and told of", natural_int, metavar="STEP")] = 0,
) -> None:
    """Draw the curves of runs into one picture.

    They are losses, gradient norm, learning rate, speed, memory, and what was skipped, each in a panel of 800 x 400 pixels that
    is there when some run has logged it. A colour is a run, in all panels. Noisy curves are drawn twice, each value faint and
    their running mean strong. A table tells last step, last loss, best validation loss and samples a second.

    Examples:
      pixcell plot output/256
      pixcell plot output/256 output/256_muon --from-step 1000 --log --out compared.png
      pixcell plot output/256 --tags train/mse train/vb
    """
    from diffusion.utils.errors import InputError

    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: expected the name of a PNG file")

    from tqdm import tqdm

    from diffusion.evaluation.reports.training_curves import (
        SUMMARY_HEAD,
        choose_panels,
        load_curves,
        plot_curves,
        summary_row,
    )
    from diffusion.utils.files import atomic_write
    from diffusion.utils.text import format_table, shortest_names

    names = shortest_names(workdirs)
    with tqdm(workdirs, unit="run", leave=False, disable=len(names) == 1) as paths:  # gone before an error is printed
        runs = {name: load_curves(path, from_step) for name, path in zip(names, paths, strict=True)}
    panels = choose_panels(runs, tags, log)
    with atomic_write(out) as temporary:
        temporary.write_bytes(plot_curves(runs, panels))
    print(format_table([SUMMARY_HEAD, *(summary_row(name, curves) for name, curves in runs.items())], "lr"))
    print(f"written: {out}")
