"""Cut slides and images into square patches of tissue at one resolution.

Patches go to OUT/<dataset>/<cohort>/single_<size>/<slide>/<column>_<row>.jpeg. Beside them, OUT/<dataset>/<cohort>/slides_<size>/
gets one picture a slide with the squares kept and dropped, and one record. A slide that is finished is not made again, and
one that a stopped run left half done is. A slide that cannot be read is reported, and the others go on; the exit code is then 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/extract_patches.py --slides slides/ --dataset tcga --cohort brca --workers 16
  python tools/extract_patches.py --slides list_of_slides.txt --dataset tcga --cohort brca
  python tools/extract_patches.py --slides nest.jpg --image_mpp 0.25 --dataset demo --cohort ovary --step 256 --area 0 0 0.75 1
"""

main = Script("patches", __doc__, EXAMPLES, flags=dict(stride=("--step",)), unused=("device", "seed"))

if __name__ == "__main__":
    run(main)
