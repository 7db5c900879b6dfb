"""Draw the curves of runs into one picture: losses, gradient norm, learning rate, speed, memory, and what was skipped.

A colour is a run, in all panels; a panel is there when some run has logged what it shows. Noisy curves are drawn twice, each value
faint and their running mean strong. A table tells last step, last loss, best validation loss and samples a second.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/plot_run.py output/256
  python tools/plot_run.py output/256 output/256_muon --from_step 1000 --log --out compared.png
  python tools/plot_run.py output/256 --tags train/mse train/vb"""

main = Script(
    "plot",
    __doc__,
    EXAMPLES,
    unused=("root", "device", "seed"),
)

if __name__ == "__main__":
    run(main)
