"""Fetch released weights from huggingface.co into ROOT/pretrained_models: PixCell, SD3.5's VAE, UNI2-h.

What is there already is skipped, so a run that was stopped goes on when it is run again. Two of the models are given on
request: ask on their pages, then set HF_TOKEN. HF_ENDPOINT names a mirror of the hub.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/download_models.py --list
  HF_TOKEN=... python tools/download_models.py
  python tools/download_models.py pixcell-256 pixcell-256-ckpt --root /data/pixcell"""

main = Script("download", __doc__, EXAMPLES, unused=("device", "seed"))

if __name__ == "__main__":
    run(main)
