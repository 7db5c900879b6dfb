"""Extract the two feature files of every indexed patch: VAE moments and patch embeddings.

Embeddings that pixcell import took over are left alone, and no encoder is loaded then: only latents are computed.
A patch whose two files are there and whole is passed over, so a run that was stopped, or killed, goes on where it was; under
`accelerate launch` the processes share the patches, however many they were before. A patch that cannot be read or encoded is
listed with the reason in features_wrong_<key>_<endings>.txt beside the index, and the exit code is then 1; --on_error raise stops at it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import DATA_FLAGS, Script

EXAMPLES = """  python tools/extract_features.py --dataset_name tcga_diagnostic --size 256
  accelerate launch tools/extract_features.py --dataset_name tcga_diagnostic --size 1024 --precision bf16 --batch_size 64
  python tools/extract_features.py --dataset_name demo --size 256 --vae tiny --encoder mobilenetv2"""

main = Script("features", __doc__, EXAMPLES, {**DATA_FLAGS, "dataset": ("--dataset_name",)}, unused=("seed",))

if __name__ == "__main__":
    run(main)
