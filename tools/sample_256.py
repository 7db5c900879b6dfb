"""Sample 256-pixel images from a trained run, conditioned on random patches of its index, beside those patches."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.sampling_options import patch_sampler_parser

EXAMPLES = """  python tools/sample_256.py --workdir output/256 --checkpoint checkpoints/last_ema.ckpt --out_dir samples_256 \\
      --n_images 5000 --sampling_steps 20 --guidance_strength 2 --sampling_algo dpm-solver
  python tools/sample_256.py --workdir output/256 --images tissue.png --n_images 8
  accelerate launch tools/sample_256.py --workdir output/256 --n_images 50000"""


def main() -> None:
    args = patch_sampler_parser(__doc__, EXAMPLES, "samples_256", count=5000, batch_size=16).parse_args()

    from diffusion.generation.session import sample_patches

    sample_patches(args, sizes=(256,))


if __name__ == "__main__":
    run(main)
