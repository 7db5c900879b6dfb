"""Variations of given patches: images sampled for their embeddings, and between two of them, as one labelled picture."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import SAMPLING_FLAGS, Script

EXAMPLES = """  python tools/vary.py tissue.png --workdir output/256 --variations 6
  python tools/vary.py tumour.png stroma.png --workdir output/1024 --between 7 --out variations.png"""

main = Script("vary", __doc__, EXAMPLES, {**SAMPLING_FLAGS, "out": ("--out",)}, defaults=dict(batch_size=4))

if __name__ == "__main__":
    run(main)
