"""Sample 1024-pixel (or 512-pixel) images from a trained run, conditioned on patches of its index, on images or on tokens."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.sampling_options import patch_sampler_parser

EXAMPLES = """  python tools/sample_1024.py --workdir output/1024 --out_dir samples_1024 --n_images 100 --guidance_strength 1.2
  python tools/sample_1024.py --workdir output/1024 --images tissue_1.png tissue_2.png
  python tools/sample_1024.py --workdir output/1024 --tokens patches/set/brca/single_1024/slide/10_14_uni.npy --n_images 4"""


def main() -> None:
    args = patch_sampler_parser(__doc__, EXAMPLES, "samples_1024", count=100, batch_size=4).parse_args()

    from diffusion.generation.session import sample_patches

    sample_patches(args, sizes=(512, 1024))


if __name__ == "__main__":
    run(main)
