"""Train PixCell: accelerate launch train_scripts/train_pixcell.py configs/pan_cancer/pixart_20x_256.py --work-dir OUT"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  accelerate launch train_scripts/train_pixcell.py configs/pan_cancer/pixart_20x_256.py --work-dir output/256
  accelerate launch train_scripts/train_pixcell.py configs/pan_cancer/pixart_20x_256.py --work-dir output/256 --time-limit 470
  python train_scripts/train_pixcell.py configs/pan_cancer/pixart_20x_256.py --dry-run
  python train_scripts/train_pixcell.py configs/demo/demo_256.py --device cpu --set max_steps=10 optimizer.lr=1e-4"""
DASHED = ("resume_from", "accept_changes", "load_from", "batch_size", "dry_run", "time_limit", "report_to")

main = Script(
    "train",
    "Train a diffusion transformer on the latents and embeddings of indexed patches.",
    EXAMPLES,
    {"workdir": ("--work-dir",), **{name: (f"--{name.replace('_', '-')}",) for name in DASHED}},
)

if __name__ == "__main__":
    run(main)
