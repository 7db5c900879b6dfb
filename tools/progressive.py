"""Train stage after stage, each from the weights of the one before, and go on where a stop left it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/progressive.py configs/pan_cancer/pixart_20x_256.py configs/pan_cancer/pixart_20x_512_pos_embed.py \\
      configs/pan_cancer/pixart_20x_1024_pos_embed.py --work-dir output/pixcell --launch "--multi_gpu --num_processes 8"
  python tools/progressive.py configs/demo/demo_256.py configs/demo/demo_512.py configs/demo/demo_1024.py --work-dir W
  python tools/progressive.py configs/demo/demo_256.py configs/demo/demo_512.py --work-dir W --status"""

main = Script(
    "stages",
    __doc__,
    EXAMPLES,
    {"out": ("--work-dir",), "load_from": ("--load-from",), "train_options": ("--train",)},
)

if __name__ == "__main__":
    run(main)
