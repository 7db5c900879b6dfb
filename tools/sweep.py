"""Sample a run at many settings and score each: which guidance, how many steps, which solver, which weights?

Every combination of the values given is a point. Conditions, noise and the real tissue are the same at all of them.
OUT/sweep.csv and sweep.json are the table, with the best point marked; OUT/<setting>.png shows the scores over each
setting that has several values; OUT/points/ keeps samples and scores, so that the same command goes on where it was
stopped, and one with more values computes those alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import SAMPLING_FLAGS, Script

EXAMPLES = """  python tools/sweep.py --workdir output/256 --guidances 1 1.5 2 3 4 --n_images 5000 --out sweep
  python tools/sweep.py --workdir output/256 --guidances 1.5 2 --intervals all 0.3:5 --steps 10 20 50 --out sweep
  python tools/sweep.py --workdir output/256 --ema_lengths 0.05 0.1 0.15 --checkpoints checkpoints/last_ema.ckpt"""
FLAGS = {
    **SAMPLING_FLAGS,
    "out": ("--out",),
    "guidance": ("--guidances", *SAMPLING_FLAGS["guidance"]),
    "steps": ("--steps", *SAMPLING_FLAGS["steps"]),
    "solver": ("--solvers", *SAMPLING_FLAGS["solver"]),
    "guidance_interval": ("--intervals",),
    "checkpoint": ("--checkpoints", "--checkpoint"),
}

main = Script("sweep", __doc__, EXAMPLES, FLAGS, unused=("format", "guidance_interval"), keywords=dict(published=True))

if __name__ == "__main__":
    run(main)
