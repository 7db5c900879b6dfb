"""How well latent codecs reconstruct your own patches: PSNR, SSIM and distances in an encoder's features, with pictures.

All codecs see the same windows, drawn at random; windows are encoded, decoded from the posterior's mean, rounded to 8 bits and
compared. OUT gets scores.json, scores.csv (a row a codec) and sheet.png: the first codec's best, median and worst windows by PSNR,
what each codec makes of them, and the differences; of windows beyond 256 pixels their middle.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import natural_int, output_folder, path_text, positive_int, run, tool_parser
from diffusion.formats import DEFAULT_INDEX, DEFAULT_VAE, PRECISIONS
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write, atomic_write_bytes
from diffusion.utils.hardware import prepare_device
from diffusion.utils.text import format_table

if TYPE_CHECKING:
    import torch

    from diffusion.encoders.latents import LatentCodec
    from diffusion.evaluation.metrics.intervals import Value
    from diffusion.evaluation.reconstruction import CodecQuality
    from diffusion.evaluation.sets.random_windows import ImageFiles, RandomWindows

EXAMPLES = """  python tools/check_vae.py --vae tiny pretrained_models/sd-3.5-vae --images patches/mine/ --n 256 --out vae_check
  python tools/check_vae.py --subset_keys mine_1024 --size 512 --encoder uni2
  python tools/check_vae.py --root data/demo --vae tiny --subset_keys demo_heldout_256"""


def main() -> None:
    args = parse_args()

    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.encoders.latents import LatentCodec
    from diffusion.evaluation import reconstruction
    from diffusion.evaluation.sets.random_windows import draw_windows
    from diffusion.utils.hardware import torch_dtype

    if args.n < 2:
        raise InputError(f"--n {args.n}: expected at least 2 windows")
    reconstruction.check_window_size(args.size, LatentCodec.factor)
    device = prepare_device(args.device)
    locations = find_codecs(args.vae, args.root)
    # All that can be refused is read before a network runs.
    codecs = {name: LatentCodec.load(place, device, torch_dtype(args.precision)) for name, place in locations.items()}
    embedder = PatchEmbedder.load(args.encoder, device, root=args.root)
    windows = draw_windows(open_images(args), args.n, args.size, args.seed, args.strict)
    warn_unusable(windows, args.n)

    features = reconstruction.embed_originals(windows, embedder, args.batch_size)
    qualities = [
        reconstruction.measure_codec(name, codec, windows, features, embedder, args.batch_size)
        for name, codec in codecs.items()
    ]
    about = {
        "images": str(windows.folder),
        "size": args.size,
        "seed": args.seed,
        "encoder": {"name": embedder.name, "weights": embedder.fingerprint},
        "precision": args.precision,
        "device": device.type,
    }
    weights = {name: codec.fingerprint for name, codec in codecs.items()}
    write_sheet(args, codecs, windows, qualities, about)
    write_scores(args.out, qualities, weights, windows, about)
    print_summary(qualities, windows)
    print(f"written: {args.out}")


def find_codecs(named: list[str], root: Path) -> dict[str, str | Path]:
    """Return the place of each codec by a short name, the last parts of its path that no other has. Raises InputError for duplicates."""
    from diffusion.components import resolve_vae
    from diffusion.encoders.vae_files import codec_folder
    from diffusion.utils.text import shortest_names

    locations = [resolve_vae(vae, root) for vae in named]
    folders = [codec_folder(location).resolve() for location in locations]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise InputError(f"--vae: {named[i]} is named more than once; name each codec once")
    return dict(zip(shortest_names([Path(location) for location in locations]), locations, strict=True))


def open_images(args: argparse.Namespace) -> ImageFiles:
    """Return the images of --images, else those of the index."""
    from diffusion.data.index.patch_index import PatchIndex, index_path
    from diffusion.evaluation.sets.random_windows import ImageFiles

    if args.images is None:
        return ImageFiles.from_index(
            args.root, PatchIndex(index_path(args.root, args.patch_names_file), args.subset_keys)
        )
    if args.subset_keys is not None:
        raise InputError("--images and --subset_keys: patches are taken from one of them; give one")
    return ImageFiles.from_folder(args.images)


def warn_unusable(windows: RandomWindows, wanted: int) -> None:
    """Print to stderr which images were left out, and whether there are fewer windows than wanted."""
    for reason in windows.bad.values():
        print(f"left out: {reason}", file=sys.stderr)
    if windows.bad:
        print(f"note: {len(windows.bad)} images left out", file=sys.stderr)
    if len(windows) < wanted:
        print(f"note: the images hold {len(windows)} windows of {windows.size} pixels, not {wanted}", file=sys.stderr)


def write_sheet(
    args: argparse.Namespace,
    codecs: dict[str, LatentCodec],
    windows: RandomWindows,
    qualities: list[CodecQuality],
    about: dict[str, Any],
) -> None:
    """Write the picture; without --pictures remove that of an earlier run, which would not fit the new scores."""
    import torch

    from diffusion.evaluation.reconstruction import reconstruct
    from diffusion.evaluation.reports.reconstruction_sheet import build_sheet_rows, choose_examples
    from diffusion.generation.image_files import labelled_grid, save_image

    path = args.out / "sheet.png"
    if not args.pictures:
        path.unlink(missing_ok=True)
        return
    kinds = choose_examples(qualities[0].per_window["psnr"], args.pictures)
    pictures = windows.read(list(kinds))

    def reconstruct_all(codec: LatentCodec) -> torch.Tensor:
        return torch.cat([reconstruct(codec, part) for part in pictures.split(args.batch_size)])

    rows = build_sheet_rows(windows, kinds, {name: reconstruct_all(codec) for name, codec in codecs.items()}, qualities)
    save_image(path, labelled_grid(rows), about)


def write_scores(
    out: Path, qualities: list[CodecQuality], weights: dict[str, str], windows: RandomWindows, about: dict[str, Any]
) -> None:
    """Write scores.csv and scores.json."""
    from diffusion.evaluation.reconstruction import NOTES

    rows = [quality.to_row() for quality in qualities]
    with atomic_write(out / "scores.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    scores = {
        **about,
        "codecs": {each.codec: {"weights": weights[each.codec], **each.to_dict()} for each in qualities},
        "less_the_first": {
            each.codec: {name: value._asdict() for name, value in each.difference_to(qualities[0]).items()}
            for each in qualities[1:]
        },
        "notes": NOTES,
        "left_out": windows.bad,
        "windows": [str(place) for place in windows.places],
    }
    atomic_write_bytes(out / "scores.json", (json.dumps(scores, indent=2) + "\n").encode("utf-8"))


def print_summary(qualities: list[CodecQuality], windows: RandomWindows) -> None:
    """Print the table of scores, and the differences of the other codecs to the first."""
    from diffusion.evaluation.reconstruction import QUALITY_LABELS

    print(f"{len(windows)} windows of {windows.size} pixels, {windows.folder}; means with 95 % intervals")
    rows = [("codec", *QUALITY_LABELS.values(), "Frechet", "latents/pixel", "s/window", "parameters")]
    for each in qualities:
        means = [format_interval(value) for value in each.means.values()]
        cost = (f"{each.latents_per_pixel:g}", f"{each.seconds:.3g}", f"{each.parameters / 1e6:.1f} M")
        rows.append((each.codec, *means, f"{each.frechet:.4g}", *cost))
    print(format_table(rows))
    if len(qualities) > 1:
        print(f"differences to {qualities[0].codec}, window by window")
        differences = [each.difference_to(qualities[0]).values() for each in qualities[1:]]
        names = [each.codec for each in qualities[1:]]
        cells = [
            (name, *(format_interval(value, "+") for value in values))
            for name, values in zip(names, differences, strict=True)
        ]
        print(format_table([("codec", *QUALITY_LABELS.values()), *cells]))


def format_interval(value: Value, sign: str = "") -> str:
    """Return a value with its interval, such as `0.9243 [0.9128, 0.9346]`; sign: "+" to show that of positive numbers, too."""
    mean, low, high = value
    return f"{mean:{sign}.4g} [{low:{sign}.4g}, {high:{sign}.4g}]"


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add(
        "--vae",
        nargs="+",
        default=[DEFAULT_VAE],
        help="codecs: diffusers folders (below ROOT or here), or the embedded 'tiny' [pretrained_models/sd-3.5-vae]",
    )
    add("--images", type=Path, metavar="DIR", help="folder of images, of any size [the patches of the index]")
    add("--patch_names_file", type=path_text, default=DEFAULT_INDEX, help="index in ROOT/patches/metadata")
    add("--subset_keys", nargs="+", help="keys of that index [all]")
    add("--n", type=positive_int, default=256, help="windows, drawn at random")
    add("--size", type=positive_int, default=256, help="pixels a side of a window; larger images are cut")
    add(
        "--encoder",
        default="mobilenetv2",
        help="of features: uni2, mobilenetv2, a weights file or its folder, or NAME=PATH",
    )
    add("--precision", choices=PRECISIONS, default="fp32", help="of the codecs")
    add("--batch_size", type=positive_int, default=8, help="windows per pass; lower it when memory runs out")
    add("--strict", action="store_true", help="refuse images that cannot be used, instead of leaving them out")
    add(
        "--pictures", type=natural_int, default=2, help="best, median and worst windows on the sheet, each; 0: no sheet"
    )
    add("--out", type=output_folder, default="vae_check", help="folder for scores and sheet")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
