"""Train the small latent codec of asset/tiny_vae: 16 channels at an eighth of the resolution, an hour on one core.

It learns from the upper three quarters of each demo image and is scored on the bottom quarters, which no crop touches.
Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python train_scripts/train_tiny_vae.py --out asset/tiny_vae
  python train_scripts/train_tiny_vae.py --out longer --init asset/tiny_vae --seed 1"""

main = Script(
    "train-codec",
    __doc__,
    EXAMPLES,
    {
        "workdir": ("--work-dir",),
        "max_steps": ("--steps",),
        "load_from": ("--init",),
        "accept_changes": ("--accept-changes",),
        "batch_size": ("--batch",),
    },
    defaults={"out": "asset/tiny_vae"},
)

if __name__ == "__main__":
    run(main)
