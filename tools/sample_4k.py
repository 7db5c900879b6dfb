"""Sample pictures of any size from a network of 1024 (or 512) pixels, in overlapping windows whose predictions are blended."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import SAMPLING_FLAGS, Script

EXAMPLES = """  python tools/sample_4k.py --output_dir samples_4k --num_samples 100 --num_timesteps 20 --guidance_scale 2 \\
      --sliding_window_size 64 --gpu_id 0
  python tools/sample_4k.py --workdir output/1024 --slide slide.svs --x 20000 --y 12000 --num_samples 1
  python tools/sample_4k.py --workdir output/1024 --reference tissue.png --height 2048 --width 3072 --num_samples 1"""

main = Script(
    "large",
    __doc__,
    EXAMPLES,
    {**SAMPLING_FLAGS, "window_stride": ("--sliding_window_size", "--stride")},
    defaults=dict(out="samples_4k"),
    keywords=dict(published=True),
)

if __name__ == "__main__":
    run(main)
