"""Score synthetic images against real ones, and write a page that opens in any browser, without network.

Give two folders of images (--real, --syn; a synthetic image belongs to the real one of the same path below its folder,
suffix aside), two files of features (.npy, .npz), or a run to sample from (--workdir). OUT/index.html is the page,
OUT/scores.json its numbers, OUT/pairs.csv the similarity of every pair, OUT/pairs.png a picture of some.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import SAMPLING_FLAGS, Script

EXAMPLES = """  python tools/evaluate.py --real samples_256/real --syn samples_256/syn --encoders mobilenetv2 uni2
  python tools/evaluate.py --real real --syn syn --encoders timm/resnet50.a1_in1k=model.safetensors --train training/
  python tools/evaluate.py --workdir output/256 --n_images 5000 --guidance_strength 2 --out report
  accelerate launch tools/evaluate.py --real features_real.npy --syn features_syn.npy"""

main = Script(
    "evaluate",
    __doc__,
    EXAMPLES,
    {**SAMPLING_FLAGS, "out": ("--out",), "losses": ("--run",)},
    unused=("tokens",),
    keywords=dict(published=True),
)

if __name__ == "__main__":
    run(main)
