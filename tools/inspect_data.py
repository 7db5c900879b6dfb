"""Show what an index holds: patches and slides by data set and cohort, how many have features, and a sheet of pictures.

Files are looked for, not read: build_index --verify reads them. On a large index a random sample of each key is looked for.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from tqdm import tqdm

from diffusion.cli.parser import natural_int, output_file, path_text, plain_name, run, tool_parser
from diffusion.data.features.parts import PARTS, part_prefixes
from diffusion.data.features.store import open_features, probe_names
from diffusion.data.index.patch_index import PatchIndex, index_keys, index_path, iterate_names, split_key
from diffusion.data.index.survey import count_cohorts, count_coverage, render_patch_sheet
from diffusion.formats import DEFAULT_INDEX, SSL_PREFIX, VAE_PREFIX
from diffusion.utils.errors import MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import format_table

EXAMPLES = """  python tools/inspect_data.py
  python tools/inspect_data.py --root data/demo --vae_prefix tiny_vae --ssl_prefix mobilenetv2 --sheet sheet.png
"""


def main() -> None:
    args = parse_args()
    path = index_path(args.root, args.patch_names_file)
    draw = random.Random(args.seed)
    rows = [("key", "cohort", "patches", "slides")]
    lines, pictures = [], []
    for key in index_keys(path):
        index = PatchIndex(path, [key])
        names = tqdm(iterate_names(path, key), total=len(index), desc=key, unit="patch", leave=False)
        counts = count_cohorts(names)
        rows += [(key, cohort, f"{count.patches:,}", f"{count.slides:,}") for cohort, count in counts.items()]
        is_complete = args.sample == 0 or args.sample >= len(index)
        chosen = range(len(index)) if is_complete else sorted(draw.sample(range(len(index)), args.sample))
        lines.append(f"{key}: {describe_coverage(args, key, index, chosen, is_complete)}")
        pictures += [index.name(i) for i in draw.sample(range(len(index)), min(args.pictures, len(index)))]
    print(format_table(rows, "llr"))
    print("\n".join(lines))
    if not args.pictures:
        return
    chosen = sorted(draw.sample(pictures, min(args.pictures, len(pictures))))
    sheet, wrong = render_patch_sheet(args.root, chosen, columns=min(8, len(chosen)))
    target = args.sheet or path.with_name("contact_sheet.png")
    with atomic_write(target) as temporary:
        sheet.save(temporary, "PNG")
    print(f"pictures: {target}" + (f"; {len(wrong)} cannot be read, such as {wrong[0]}" if wrong else ""))


def describe_coverage(
    args: argparse.Namespace, key: str, index: PatchIndex, chosen: Sequence[int], is_complete: bool
) -> str:
    """Say how many patches of a key have their files."""
    prefixes = part_prefixes(args.vae_prefix, args.ssl_prefix)
    try:
        features = open_features(args.root, args.features_dir, key, probe_names(index, 0), split_key(key)[1], prefixes)
    except MissingError:
        features = None
    found = count_coverage(args.root, [index.name(i) for i in tqdm(chosen, desc=key, leave=False)], features, prefixes)
    parts = {"images": found.images} | {PARTS[part].label: count for part, count in found.parts.items()}
    of = f"all {found.patches:,}" if is_complete else f"{found.patches:,} drawn at random"
    return ", ".join(f"{100 * n / found.patches:.4g} % {what}" for what, n in parts.items()) + f" (of {of})"


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__ or "", EXAMPLES, networks=False)
    add = parser.add_argument
    add("--patch_names_file", type=path_text, default=DEFAULT_INDEX, help="index in ROOT/patches/metadata")
    add("--features_dir", type=path_text, help="folder of the features [beside the images, else features, else packed]")
    add("--vae_prefix", type=plain_name, default=VAE_PREFIX, help="ending of the latent files")
    add("--ssl_prefix", type=plain_name, default=SSL_PREFIX, help="ending of the embedding files")
    add("--sample", type=natural_int, default=10_000, help="patches of a key whose files are looked for; 0: all")
    add("--pictures", type=natural_int, default=48, help="patches on the sheet; 0: no sheet")
    add("--sheet", type=output_file, help="the sheet, a PNG [contact_sheet.png beside the index]")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
