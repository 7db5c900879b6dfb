"""Draw the curves of runs into one picture: losses, gradient norm, learning rate, speed, memory, and what was skipped.

A colour is a run, in all panels; a panel is there when some run has logged what it shows. Noisy curves are drawn twice, each value
faint and their running mean strong. A table tells last step, last loss, best validation loss and samples a second.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import harmonic_mean
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from tqdm import tqdm

from diffusion.cli.parser import natural_int, output_file, run, tool_parser
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import format_number, format_table, shortest_names

if TYPE_CHECKING:
    from diffusion.evaluation.reports.curves import Curve

EXAMPLES = """  python tools/plot_run.py output/256
  python tools/plot_run.py output/256 output/256_muon --from_step 1000 --log --out compared.png
  python tools/plot_run.py output/256 --tags train/mse train/vb
"""
TABLE_HEAD = ("run", "last step", "last loss", "best validation", "at step", "samples/s")


def main() -> None:
    args = parse_args()
    from diffusion.evaluation.reports.training_curves import choose_panels, plot_curves

    if args.out.suffix.lower() != ".png":
        raise InputError(f"--out {args.out}: expected the name of a PNG file")
    names = shortest_names(args.workdirs)
    with tqdm(
        args.workdirs, unit="run", leave=False, disable=len(names) == 1
    ) as paths:  # gone before an error is printed
        runs = {name: load_curves(path, args.from_step) for name, path in zip(names, paths, strict=True)}
    panels = choose_panels(runs, args.tags, args.log)
    with atomic_write(args.out) as temporary:
        temporary.write_bytes(plot_curves(runs, panels))
    print(format_table([TABLE_HEAD, *(summary_row(name, curves) for name, curves in runs.items())], "lr"))
    print(f"written: {args.out}")


def load_curves(workdir: Path, from_step: int) -> dict[str, Curve]:
    """Read the curves of a run from a step on, by tag.

    Raises InputError when nothing is left.
    """
    from diffusion.evaluation.reports.curves import read_curves

    complete = read_curves(workdir)
    if not complete:
        raise InputError(f"{workdir} has TensorBoard files but no curve in them: nothing was logged yet; leave it out")
    last = max(curve.steps[-1] for curve in complete.values())
    if last < from_step:
        raise InputError(f"--from_step {from_step}: {workdir} ends at step {last}; take a smaller step or leave it out")
    curves = {tag: curve.tail(from_step) for tag, curve in complete.items()}
    return {tag: curve for tag, curve in curves.items() if curve.steps}


def summary_row(name: str, curves: Mapping[str, Curve]) -> tuple[str, ...]:
    """Return a run's row of the table, with a dash for what was not logged."""
    losses = curves["train/loss"].values if "train/loss" in curves else []
    last = format_number(losses[-1]) if losses else "-"
    best, at = "-", "-"
    if "validation/loss" in curves:
        validation = curves["validation/loss"]
        finite = [point for point in zip(validation.values, validation.steps, strict=True) if math.isfinite(point[0])]
        if finite:
            value, step = min(finite)
            best, at = format_number(value), f"{step:,}"
    # Each value is of as many samples, so that only their harmonic mean is all samples over all seconds.
    rates = curves["train/samples_per_second"].values if "train/samples_per_second" in curves else []
    rates = [rate for rate in rates if 0 < rate < math.inf]
    steps = max(curve.steps[-1] for curve in curves.values())
    return name, f"{steps:,}", last, best, at, format_number(harmonic_mean(rates)) if rates else "-"


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES, networks=False, draws=False)
    add = parser.add_argument
    add("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="work dir of a run, with tensorboard/ in it")
    add("--out", type=output_file, default="curves.png", help="the picture, a PNG; each panel is 800 x 400 pixels")
    add("--tags", nargs="+", metavar="TAG", help="TensorBoard tags to draw, a panel each, instead of the usual ones")
    add("--log", action="store_true", help="logarithmic axes for losses")
    add("--from_step", type=natural_int, default=0, metavar="STEP", help="first step that is drawn and told of")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
