"""Pack the features of an index key into HDF5 shards, from which training reads a crop at once; or unpack them again.

Shards go to OUT/<key>/<vae_prefix>-<ssl_prefix>/, each written aside, read back, compared and renamed. A run that was stopped
goes on with the shard that it was at, and names that the index gained since are packed into further shards. Loose files are
left alone. With --unpack, the files that are packed and not whole below ROOT/FEATURES_DIR are written there; with --verify,
every chunk's checksum is tested, and loose files that are there are compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import run
from diffusion.cli.script import DATA_FLAGS, Script

EXAMPLES = """  python tools/pack_features.py --dataset_name tcga_diagnostic --workers 8
  python tools/pack_features.py --dataset_name demo --vae_prefix tiny_vae --ssl_prefix mobilenetv2
  python tools/pack_features.py --dataset_name demo --verify
  python tools/pack_features.py --dataset_name demo --unpack --features_dir features
"""

main = Script(
    "pack",
    __doc__,
    EXAMPLES,
    {**DATA_FLAGS, "dataset": ("--dataset_name",)},
    unused=("device", "seed"),
    keywords=dict(published=True),
)

if __name__ == "__main__":
    run(main)
