"""Train the small latent codec of asset/tiny_vae: 16 channels at an eighth of the resolution, an hour on one core.

It learns from the upper three quarters of each demo image and is scored on the bottom quarters, which no crop touches.
Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import positive_int, run, tool_parser
from diffusion.training.parallel.preemption import EXIT_CODE
from diffusion.utils.hardware import has_bf16, prepare_device


def main() -> int:
    args = parse_args()
    device = prepare_device(args.device)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("diffusion").setLevel(logging.INFO)

    from diffusion.tasks.codec.task import CodecConfig, train_codec

    config = CodecConfig(
        source=str(args.source or args.root / "data/demo/source"),
        load_from=None if args.init is None else str(args.init),
        max_steps=args.steps,
        train_batch_size=args.batch,
        crop=args.crop,
        seed=args.seed,
        mixed_precision="bf16" if has_bf16(device) else "no",
    )
    work_dir = args.work_dir or args.out.with_name(f"{args.out.name}.run")
    lines = list(train_codec(config, work_dir, args.out, device, args.fresh, args.accept_changes))
    if not lines:
        return EXIT_CODE
    if args.work_dir is None:  # the same command trains again
        shutil.rmtree(work_dir)
    print("\n".join(lines))
    return 0


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument("--source", type=Path, help="folder that pixcell demo-data filled [ROOT/data/demo/source]")
    parser.add_argument("--out", type=Path, default=Path("asset/tiny_vae"), help="diffusers folder to write")
    parser.add_argument(
        "--work-dir", type=Path, help="where checkpoints go, and stay [OUT with .run appended, until OUT is written]"
    )
    parser.add_argument("--steps", type=positive_int, default=7500, help="optimizer steps")
    parser.add_argument("--init", type=Path, help="a folder of such weights to go on from, with another --seed")
    parser.add_argument("--fresh", action="store_true", help="start a new run: an error when the work dir has one")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with another batch, seed or source than the run was begun with",
    )
    parser.add_argument("--batch", type=positive_int, default=8, help="crops per step")
    parser.add_argument("--crop", type=positive_int, default=64, help="side of a crop in pixels")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
