"""Sample a run at many settings and score each: which guidance, how many steps, which solver, which weights?

Every combination of the values given is a point. Conditions, noise and the real tissue are the same at all of them.
OUT/sweep.csv and sweep.json are the table, with the best point marked; OUT/<setting>.png shows the scores over each
setting that has several values; OUT/points/ keeps samples and scores, so that the same command goes on where it was
stopped, and one with more values computes those alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli import (
    default_root,
    finite_float,
    natural_int,
    output_folder,
    pick_device,
    positive_float,
    positive_int,
    run,
    start_processes,
)
from diffusion.errors import InputError
from diffusion.files import write_whole
from diffusion.sampler_cli import ALGORITHMS, patch_sampler_parser

if TYPE_CHECKING:
    from accelerate import PartialState

    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.measure import Options
    from diffusion.evaluation.sweep import Point

EXAMPLES = """  python tools/sweep.py --workdir output/256 --guidances 1 1.5 2 3 4 --n_images 5000 --out sweep
  python tools/sweep.py --workdir output/256 --guidances 1.5 2 --intervals all 0.3:5 --steps 10 20 50 --out sweep
  python tools/sweep.py --workdir output/256 --ema_lengths 0.05 0.1 0.15 --checkpoints checkpoints/last_ema.ckpt"""


def main() -> None:
    args = parse_args()
    state = start_processes(pick_device(args.device))
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.measure import Options
    from diffusion.evaluation.sweep import QUANTITIES, grid, parse_interval, write_sweep
    from diffusion.workdir import default_work_dir

    args.workdir = args.workdir or default_work_dir()
    if args.tokens and args.real is None:
        raise InputError("--tokens have no tissue to score against; name a folder of real images with --real")
    if args.by not in QUANTITIES:
        raise InputError(f"--by {args.by}: expected one of {', '.join(QUANTITIES)}")
    weights = weights_of(args, state)
    points = grid(
        {
            "weights": list(weights),
            "solver": args.solvers or [args.sampling_algo],
            "steps": args.steps or [args.sampling_steps],
            "guidance": args.guidances or [args.guidance_strength],
            "interval": [parse_interval(text) for text in args.intervals],
        }
    )
    options = Options(METRICS, args.seed, args.bootstrap, args.batch_size, args.workers)
    embedders = [PatchEmbedder.load(name, state.device, root=args.root or default_root()) for name in args.encoders]
    # the tissue that conditions is the same for all: one point keeps it, and is done first
    keeper = next((point for point in points if (args.out / "points" / point.name / "real").is_dir()), points[0])
    real = args.real or args.out / "points" / keeper.name / "real"
    found = {}
    for i, point in enumerate(sorted(points, key=lambda point: point != keeper)):
        state.print(f"point {i + 1} of {len(points)}: {point.name}")
        folder = sample(args, point, weights[point.weights], with_real=args.real is None and point == keeper)
        found[point] = score(folder, real, args, embedders, options, state)
    scored = {point: found[point] for point in points}
    if state.is_main_process:
        best = write_sweep(args.out, scored, args.by, {"n_images": args.n_images, "seed": args.seed})
        tell(scored, args.by)
        print(f"best by {QUANTITIES[args.by].title}: {best.name}; written: {args.out}/sweep.csv")
    state.wait_for_everyone()


METRICS = ("fd", "kid", "prdc", "similarity")


def weights_of(args: argparse.Namespace, state: PartialState) -> dict[str, Path]:
    """Names of the weights to sample from and their files; averages of other lengths are made of the run's snapshots."""
    from diffusion.engine.checkpoint import save_file
    from diffusion.engine.posthoc import find_snapshots, mix_for, mixed_weights

    named = args.checkpoints or ([] if args.ema_lengths else [args.checkpoint])
    found = {path.stem: path for path in named}
    if len(found) < len(named):
        raise InputError(f"--checkpoints {' '.join(map(str, named))}: two have one name, and so would their points")
    for length in args.ema_lengths:
        file = (args.out / "weights" / f"ema_{length:.3f}.ckpt").resolve()
        if state.is_main_process and not file.is_file():
            save_file(mixed_weights(mix_for(find_snapshots(args.workdir), length)), file)
        found[file.stem] = file
    state.wait_for_everyone()
    return found


def sample(args: argparse.Namespace, point: Point, checkpoint: Path, with_real: bool) -> Path:
    """Fill the folder of a point with samples, where they are not there yet."""
    from diffusion.engine.sample_command import sample_patches

    folder = args.out / "points" / point.name
    interval = list(point.interval) if point.interval else None
    chosen = dict(checkpoint=checkpoint, sampling_algo=point.solver, sampling_steps=point.steps, out_dir=folder)
    chosen |= dict(guidance_strength=point.guidance, guidance_interval=interval, format="png")
    sample_patches(argparse.Namespace(**{**vars(args), **chosen}), sizes=(256, 512, 1024), with_real=with_real)
    return folder


def score(
    folder: Path,
    real: Path,
    args: argparse.Namespace,
    embedders: list[PatchEmbedder],
    options: Options,
    state: PartialState,
) -> dict[str, Any]:
    """The scores of a point by each encoder, as its folder keeps them, or taken now."""
    from diffusion.evaluation.features import Timing
    from diffusion.evaluation.images import ImageSet
    from diffusion.evaluation.measure import REAL, SYNTHETIC, measure, summary

    file, images = folder / "scores.json", ImageSet.open(folder / "syn", args.on_size)
    about = {
        "images": len(images.files),
        "real": str(real.resolve()),
        "encoders": {embedder.name: embedder.fingerprint for embedder in embedders},
        **{name: getattr(options, name) for name in ("seed", "replicates")},
    }
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["about"] == about:
            return before["encoders"]
    sources = {REAL: ImageSet.open(real, args.on_size), SYNTHETIC: images}
    cache = args.cache or args.out / "features"
    measured = [measure(sources, embedder, cache, state, options, Timing()) for embedder in embedders]
    if not state.is_main_process:
        return {}
    found = summary(measured)
    write_whole(file, (json.dumps({"about": about, "encoders": found}, indent=2) + "\n").encode("utf-8"))
    return found


def tell(scored: dict[Point, dict[str, Any]], by: str) -> None:
    from diffusion.evaluation.page import short

    for point, record in scored.items():
        encoder, scores = next(iter(record.items()))
        value = scores["values"][by]
        interval = "" if value["low"] is None else f"  ({short(value['low'])} to {short(value['high'])})"
        print(f"{point.name}: {by} {short(value['value'])}{interval} ({encoder})")


def parse_args() -> argparse.Namespace:
    parser = patch_sampler_parser(__doc__, EXAMPLES, out_dir=None, count=1000, batch_size=16)
    add = parser.add_argument_group(
        "what is swept; where nothing is given, the value of the sampling option holds"
    ).add_argument
    add("--guidances", type=finite_float, nargs="+", metavar="W", help="guidance strengths")
    add("--steps", type=positive_int, nargs="+", metavar="N", help="steps of the solver")
    add("--solvers", nargs="+", choices=ALGORITHMS, help="solvers")
    add(
        "--intervals",
        nargs="+",
        default=["all"],
        metavar="LO:HI",
        help="guidance intervals, as noise levels LO:HI, or all",
    )
    add("--checkpoints", type=Path, nargs="+", metavar="FILE", help="weights; a relative path is below the work dir")
    add("--ema_lengths", type=positive_float, nargs="+", default=[], metavar="LENGTH",
        help="lengths of averages made of the snapshots of a run with power_ema")  # fmt: skip
    add = parser.add_argument_group("scoring").add_argument
    add("--real", type=Path, help="folder of real images to score against [the tissue that conditions]")
    add(
        "--encoders",
        nargs="+",
        default=["mobilenetv2"],
        metavar="NAME",
        help="as of tools/evaluate.py; plots show the first",
    )
    add("--by", default="fd", metavar="SCORE", help="the score that says which point is best")
    add("--bootstrap", type=natural_int, default=50, help="replicates for the interval of a distance; 0: no interval")
    add("--on_size", choices=("refuse", "resize", "windows"), default="refuse", help="as of tools/evaluate.py")
    add("--cache", type=Path, help="folder that keeps features [OUT/features]")
    add("--workers", type=natural_int, default=1, help="processes that read images")
    add("--out", type=output_folder, default=Path("sweep"), help="folder for everything")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
