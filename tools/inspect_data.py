"""Show what an index holds: patches and slides by data set and cohort, how many have features, and a sheet of pictures.

Files are looked for, not read: build_index --verify reads them. On a large index a random sample of each key is looked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import DATA_FLAGS, Script

EXAMPLES = """  python tools/inspect_data.py
  python tools/inspect_data.py --root data/demo --vae_prefix tiny_vae --ssl_prefix mobilenetv2 --sheet sheet.png
"""

main = Script("inspect", __doc__, EXAMPLES, {**DATA_FLAGS, "out": ("--sheet",)}, unused=("device",))

if __name__ == "__main__":
    run(main)
