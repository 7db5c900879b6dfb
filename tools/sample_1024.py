"""Sample 1024-pixel (or 512-pixel) images from a trained run, conditioned on patches of its index, on images or on tokens."""

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

EXAMPLES = """  python tools/sample_1024.py --workdir output/1024 --out_dir samples_1024 --n_images 100 --guidance_strength 1.2
  python tools/sample_1024.py --workdir output/1024 --images tissue_1.png tissue_2.png
  python tools/sample_1024.py --workdir output/1024 --tokens patches/set/brca/single_1024/slide/10_14_uni.npy --n_images 4"""


def main() -> None:
    args = patch_sampler_parser(__doc__ or "", EXAMPLES, "samples_1024", count=100, batch_size=4).parse_args()

    from diffusion.generation.output_folder import OutputFolder
    from diffusion.generation.sample_patches import sample_patches
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.sources import ConditionSource

    source = ConditionSource(**condition_arguments(args))
    session = open_session(**session_arguments(args), solver=Solver(**solver_arguments(args)))
    folder = OutputFolder(args.out_dir, args.format)
    sample_patches(session, source, folder, (512, 1024), args.n_images, args.count, args.batch_size)


if __name__ == "__main__":
    run(main)
