"""Train the small latent codec of asset/tiny_vae: 16 channels at an eighth of the resolution, an hour on one core.

It learns from the upper three quarters of each demo image and is scored on the bottom quarters, which no crop touches.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import positive_int, run, tool_parser
from diffusion.utils.hardware import prepare_device


def main() -> None:
    args = parse_args()
    device = prepare_device(args.device)

    from diffusion.tasks.codec import train_codec

    source = args.source or args.root / "data/demo/source"
    for line in train_codec(source, args.out, args.steps, args.batch, args.crop, args.seed, device, args.init):
        print(line)


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--source", type=Path, help="folder that tools/fetch_demo_data.py filled [ROOT/data/demo/source]"
    )
    parser.add_argument("--out", type=Path, default=Path("asset/tiny_vae"), help="diffusers folder to write")
    parser.add_argument("--steps", type=positive_int, default=7500, help="optimizer steps")
    parser.add_argument("--init", type=Path, help="a folder of such weights to go on from, with another --seed")
    parser.add_argument("--batch", type=positive_int, default=8, help="crops per step")
    parser.add_argument("--crop", type=positive_int, default=64, help="side of a crop in pixels")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
