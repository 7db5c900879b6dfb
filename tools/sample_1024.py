"""Sample 1024-pixel (or 512-pixel) images from a trained run, conditioned on patches of its index, on images or on tokens."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import SAMPLING_FLAGS, Script

EXAMPLES = """  python tools/sample_1024.py --workdir output/1024 --out_dir samples_1024 --n_images 100 --guidance_strength 1.2
  python tools/sample_1024.py --workdir output/1024 --images tissue_1.png tissue_2.png
  python tools/sample_1024.py --workdir output/1024 --tokens patches/set/brca/single_1024/slide/10_14_uni.npy --n_images 4"""

main = Script(
    "sample",
    __doc__,
    EXAMPLES,
    SAMPLING_FLAGS,
    defaults=dict(out="samples_1024", batch_size=4),
    keywords=dict(published=True, sizes=(512, 1024), index_count=100),
)

if __name__ == "__main__":
    run(main)
