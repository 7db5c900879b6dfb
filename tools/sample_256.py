"""Sample 256-pixel images from a trained run, conditioned on random patches of its index, beside those patches."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import SAMPLING_FLAGS, Script

EXAMPLES = """  python tools/sample_256.py --workdir output/256 --checkpoint checkpoints/last_ema.ckpt --out_dir samples_256 \\
      --n_images 5000 --sampling_steps 20 --guidance_strength 2 --sampling_algo dpm-solver
  python tools/sample_256.py --workdir output/256 --images tissue.png --n_images 8
  accelerate launch tools/sample_256.py --workdir output/256 --n_images 50000"""

main = Script(
    "sample",
    __doc__,
    EXAMPLES,
    SAMPLING_FLAGS,
    defaults=dict(out="samples_256", batch_size=16),
    keywords=dict(published=True, sizes=(256,), index_count=5000),
)

if __name__ == "__main__":
    run(main)
