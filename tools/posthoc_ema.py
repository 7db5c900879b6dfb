"""An average of the weights of any length, after training, from the snapshots of a run that had power_ema set (EDM2)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/posthoc_ema.py output/256 --length 0.07 --out output/256/checkpoints/ema_0.070.ckpt
  python tools/posthoc_ema.py output/256 --length 0.15 --step 60000 --out ema.ckpt
  python tools/sample_256.py --workdir output/256 --checkpoint checkpoints/ema_0.070.ckpt --out_dir samples_0.070"""

main = Script(
    "average",
    __doc__,
    EXAMPLES,
    {"workdir": ("workdir",)},
    unused=("root", "device", "seed"),
)

if __name__ == "__main__":
    run(main)
