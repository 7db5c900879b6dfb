"""Measure this machine: network, training step, sampling, large pictures, extraction, reading, start, a busy CPU.

Everything is timed in turns with a peer, since machines slow down and speed up: what counts is the ratio. Peers are
diffusers' PixArt with its DPM-Solver, AdamW and EMAModel, loops that do one thing at a time, and the ways of the published
code. Networks have random weights; no data is needed. docs/performance-notebook.md has the figures and what they mean.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/bench.py all --json bench.json
  python tools/bench.py train --size XL --pixels 512 --batch_size 16 --compile
  python tools/bench.py extract --root data/demo --dataset demo --encoder mobilenetv2"""

main = Script(
    "bench",
    __doc__,
    EXAMPLES,
    {
        "network": ("--size",),
        "size": ("--pixels",),
        "guidance_interval": ("--interval",),
        "count": ("--patches",),
        "index_count": ("--names",),
        "out": ("--json",),
    },
    unused=("seed",),
    keywords=dict(published=True),
)

if __name__ == "__main__":
    run(main)
