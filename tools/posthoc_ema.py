"""An average of the weights of any length, after training, from the snapshots of a run that had power_ema set (EDM2)."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import output_file, positive_float, positive_int, run, tool_parser
from diffusion.formats import TORCH_SUFFIXES
from diffusion.utils.errors import InputError

EXAMPLES = """  python tools/posthoc_ema.py output/256 --length 0.07 --out output/256/checkpoints/ema_0.070.ckpt
  python tools/posthoc_ema.py output/256 --length 0.15 --step 60000 --out ema.ckpt
  python tools/sample_256.py --workdir output/256 --checkpoint checkpoints/ema_0.070.ckpt --out_dir samples_0.070"""
MAX_MISFIT = 0.05  # of the profile's norm: beyond, what is written is an average, but hardly the one asked for


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES, networks=False, draws=False)
    add = parser.add_argument
    add("workdir", type=Path, help="work dir of the run, with checkpoints/power_ema in it")
    add(
        "--length",
        type=positive_float,
        required=True,
        help="spread of the average over the steps, as a share of the run (sigma_rel): 0.02 to 0.25 is usual",
    )
    add("--out", type=output_file, required=True, help="the file to write, as last_ema.ckpt is; it must not be there")
    add("--step", type=positive_int, help="the step to average up to, one that has snapshots [the last]")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.out.exists():
        raise InputError(f"{args.out} is already there; name a new file")
    if args.out.suffix not in TORCH_SUFFIXES:
        raise InputError(f"--out {args.out}: expected a {' or '.join(TORCH_SUFFIXES)} file")

    from tqdm import tqdm

    from diffusion.training.checkpoints.checkpoint import save_file
    from diffusion.training.checkpoints.posthoc_ema import find_mix, find_snapshots, mix_weights

    mix = find_mix(find_snapshots(args.workdir), args.length, args.step)
    if not mix.misfit <= MAX_MISFIT:
        lengths = ", ".join(f"{length:g}" for length in sorted({snapshot.length for snapshot in mix.snapshots}))
        print(
            f"warning: {len(mix.snapshots)} snapshots of length {lengths} make length {args.length:g} only roughly",
            file=sys.stderr,
        )
    save_file(mix_weights(mix, partial(tqdm, unit="tensor", leave=False)), args.out)
    print(
        f"{args.out}: length {mix.length:g} at step {mix.step}, of {len(mix.snapshots)} snapshots; "
        f"its profile is met to {100 * mix.misfit:.2g} %"
    )


if __name__ == "__main__":
    run(main)
