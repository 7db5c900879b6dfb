"""Convert weights between the formats they come in: official torch file, safetensors, diffusers folder; to the bit."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/convert_checkpoint.py pixcell_256.ckpt pixcell-256 --to diffusers
  python tools/convert_checkpoint.py output/256/checkpoints/last_ema.ckpt pixcell.safetensors --to safetensors
  python tools/convert_checkpoint.py output/256/checkpoints/step_00120000.ckpt raw.ckpt --to official --weights raw"""

main = Script(
    "convert",
    __doc__,
    EXAMPLES,
    unused=("root", "device", "seed"),
)

if __name__ == "__main__":
    run(main)
