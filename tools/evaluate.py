"""Score synthetic patches against real ones, and write a report that opens in any browser, without network.

OUT/index.html is the report, OUT/scores.json its numbers, OUT/pairs.png a picture of real and synthetic pairs. Images are 256x256,
PNG or JPEG; a synthetic image belongs to the real one of the same path below its folder, suffix aside.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli import pick_device, positive_int, run, tool_parser
from diffusion.files import written_aside

TEMPLATE = Path(__file__).resolve().parents[1] / "asset" / "report.html.j2"
EXAMPLES = """  python tools/evaluate.py --real samples_256/real --syn samples_256/syn
  python tools/evaluate.py --real samples/real --syn samples/syn --untrained samples_untrained/syn --run output/demo"""


def main() -> int:
    args = parse_args()
    from diffusion.evaluation import report
    from diffusion.evaluation.features import list_images

    # All that can be refused is read before the network runs.
    images = {name: list_images(folder) for name, folder in folders(args).items()}
    curve = report.read_loss(args.run) if args.run else None
    settings = report.read_settings(args.syn)
    scores = score(images, args)
    pairs = report.choose_pairs(images["real"], images["synthetic"], args.seed)
    scores |= {
        "pairs": pairs,
        "seed": args.seed,
        "note": args.note,
        "settings": settings,
        "versions": report.versions(),
    }
    if curve:
        smooth = curve.smoothed()
        scores["loss"] = {"points": len(curve.steps), "steps": curve.steps[-1], "first": smooth[0], "last": smooth[-1]}
    write(args.out, scores, images, report.plot_loss(curve) if curve else None)
    for name, value in scores["distance"].items():
        print(f"{name}: {value:.4g}")
    for warning in scores["warnings"]:
        print(f"note: {warning}")
    print(f"written: {args.out / 'index.html'}")
    if not pairs:
        print(
            f"error: no file name is in both {args.real} and {args.syn}, so the report shows no pairs", file=sys.stderr
        )
    return 0 if pairs else 1


def folders(args: argparse.Namespace) -> dict[str, Path]:
    named = {"real": args.real, "synthetic": args.syn, "untrained": args.untrained}
    return {name: folder for name, folder in named.items() if folder is not None}


def score(images: dict[str, dict[str, Path]], args: argparse.Namespace) -> dict[str, Any]:
    """Embed every folder and measure its distance to the real one."""
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.distances import frechet_distance
    from diffusion.evaluation.features import embed_images
    from diffusion.evaluation.report import formats

    embedder = PatchEmbedder.load(args.encoder, pick_device(args.device), root=args.root)
    features = {
        name: embed_images(list(paths.values()), embedder, args.batch_size, name) for name, paths in images.items()
    }
    others = [name for name in images if name != "real"]
    distance = {f"real_vs_{name}": frechet_distance(features["real"], features[name]) for name in others}
    if "untrained" in images and distance["real_vs_untrained"] > 0:
        distance["ratio"] = distance["real_vs_synthetic"] / distance["real_vs_untrained"]
    counts = {name: {"count": len(paths), "formats": formats(list(paths.values()))} for name, paths in images.items()}
    return {
        "distance": distance,
        "images": counts,
        "encoder": {"name": embedder.name, "width": embedder.width},
        "warnings": caveats(counts, embedder.width),
    }


def caveats(counts: dict[str, dict[str, Any]], width: int) -> list[str]:
    """What a reader of the distances must know, in sentences."""
    found = []
    numbers = {name: count["count"] for name, count in counts.items()}
    if len(set(numbers.values())) > 1:
        found.append("The folders hold unequal numbers of images ("
                     + ", ".join(f"{name} {number}" for name, number in numbers.items())
                     + "); a distance grows as images get fewer.")  # fmt: skip
    if min(numbers.values()) <= width:
        found.append(
            f"Fewer images than the {width} numbers of a feature: the distances are biased upwards, and only good for comparing."
        )
    if "jpeg" in counts["synthetic"]["formats"]:
        found.append("Synthetic images are JPEG files; lossy compression alone moves the distances. Score PNG.")
    return found


def write(out: Path, scores: dict[str, Any], images: dict[str, dict[str, Path]], plot: bytes | None) -> None:
    """Write the three files, the page last."""
    from diffusion.evaluation import report

    real = [images["real"][name] for name in scores["pairs"]]
    synthetic = [images["synthetic"][name] for name in scores["pairs"]]
    page = report.render(
        TEMPLATE,
        note=scores["note"],
        images=scores["images"],
        encoder=scores["encoder"],
        distance=scores["distance"],
        warnings=scores["warnings"],
        loss={**scores["loss"], "plot": report.data_uri(plot)} if plot else None,
        pairs=[
            {"name": name, "real": report.data_uri(a), "synthetic": report.data_uri(b)}
            for name, a, b in zip(scores["pairs"], real, synthetic, strict=True)
        ],
        common=len(images["real"].keys() & images["synthetic"].keys()),
        seed=scores["seed"],
        tables=[
            (title, rows)
            for title, rows in (("Settings", scores["settings"]), ("Versions", scores["versions"]))
            if rows
        ],
    )
    write_whole(out / "scores.json", (json.dumps(scores, indent=2) + "\n").encode("utf-8"))
    if real:
        write_whole(out / "pairs.png", report.png_bytes(report.pairs_grid(real, synthetic)))
    else:
        (out / "pairs.png").unlink(missing_ok=True)  # an earlier report's
    write_whole(out / "index.html", page)


def write_whole(path: Path, content: bytes) -> None:
    with written_aside(path) as temporary:
        temporary.write_bytes(content)


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    parser.add_argument("--real", type=Path, required=True, help="folder of real patches")
    parser.add_argument(
        "--syn",
        type=Path,
        required=True,
        help="folder of synthetic patches; samples.json beside it is shown as settings",
    )
    parser.add_argument("--untrained", type=Path, help="folder of patches from an untrained network, for comparison")
    parser.add_argument("--run", type=Path, metavar="WORKDIR", help="work dir of the training run, for its loss curve")
    parser.add_argument(
        "--encoder", default="mobilenetv2", help="uni2, mobilenetv2, a weights file or its folder, or NAME=PATH"
    )
    parser.add_argument("--batch_size", type=positive_int, default=32, help="images embedded at once")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for the report")
    parser.add_argument("--note", default="", metavar="TEXT", help="a line at the head of the report")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
