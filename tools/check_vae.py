"""How well latent codecs reconstruct your own patches: PSNR, SSIM and distances in an encoder's features, with pictures.

All codecs see the same windows, drawn at random; windows are encoded, decoded from the posterior's mean, rounded to 8 bits and
compared. OUT gets scores.json, scores.csv (a row a codec) and sheet.png: the first codec's best, median and worst windows by PSNR,
what each codec makes of them, and the differences; of windows beyond 256 pixels their middle.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/check_vae.py --vae tiny pretrained_models/sd-3.5-vae --images patches/mine/ --n 256 --out vae_check
  python tools/check_vae.py --subset_keys mine_1024 --size 512 --encoder uni2
  python tools/check_vae.py --root data/demo --vae tiny --subset_keys demo_heldout_256"""
FLAGS = {
    "dataset": ("--subset_keys",),
    "index": ("--patch_names_file",),
    "count": ("--n",),
    "examples": ("--pictures",),
}

main = Script("codec", __doc__, EXAMPLES, FLAGS, defaults=dict(out="vae_check"), keywords=dict(published=True))

if __name__ == "__main__":
    run(main)
