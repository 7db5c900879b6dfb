"""How useful synthetic patches are: a linear probe and k-NN on frozen embeddings, trained on real, synthetic or both, tested on real.

Folders hold one folder per class, with the images of the class at any depth below it. Folders between class and image are taken
for slides: intervals then come from resampling whole slides of the test set, since patches of a slide are not independent.
OUT gets scores.json, scores.csv and plot.png; features stay in --cache, so that another k, seed or --per_class takes seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/probe.py --real train/ --syn samples/ --test test/ --encoders mobilenetv2 uni2 --out probe
  python tools/probe.py --real train/ --syn samples/ --test test/ --per_class 16 --seed 1 --cache probe/features --out probe_16
  accelerate launch tools/probe.py --real train/ --test test/ --encoders uni2 timm/resnet50=resnet50.pth --batch_size 256"""

main = Script("probe", __doc__, EXAMPLES, {"train_real": ("--real",), "train_syn": ("--syn",)})

if __name__ == "__main__":
    run(main)
