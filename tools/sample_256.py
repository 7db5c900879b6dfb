"""Sample 256-pixel images from a trained run, conditioned on random patches of its index, beside those patches."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.sampling_options import (
    condition_arguments,
    patch_sampler_parser,
    session_arguments,
    solver_arguments,
)

EXAMPLES = """  python tools/sample_256.py --workdir output/256 --checkpoint checkpoints/last_ema.ckpt --out_dir samples_256 \\
      --n_images 5000 --sampling_steps 20 --guidance_strength 2 --sampling_algo dpm-solver
  python tools/sample_256.py --workdir output/256 --images tissue.png --n_images 8
  accelerate launch tools/sample_256.py --workdir output/256 --n_images 50000"""


def main() -> None:
    args = patch_sampler_parser(__doc__ or "", EXAMPLES, "samples_256", count=5000, batch_size=16).parse_args()

    from diffusion.generation.output_folder import OutputFolder
    from diffusion.generation.sample_patches import sample_patches
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.sources import ConditionSource

    source = ConditionSource(**condition_arguments(args))
    session = open_session(**session_arguments(args), solver=Solver(**solver_arguments(args)))
    folder = OutputFolder(args.out_dir, args.format)
    sample_patches(session, source, folder, (256,), args.n_images, args.count, args.batch_size)


if __name__ == "__main__":
    run(main)
