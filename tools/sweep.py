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
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import finite_float, natural_int, positive_float, positive_int, run
from diffusion.cli.sampling_options import (
    condition_arguments,
    patch_sampler_parser,
    session_arguments,
    solver_arguments,
    training_data_notes,
)
from diffusion.cli.scoring_options import add_scoring_options
from diffusion.evaluation.metrics.quantities import BEST_BY
from diffusion.evaluation.metrics.quantities import COMPARED_METRICS as METRICS
from diffusion.formats import REAL_DIR, SOLVERS, SYNTHETIC_DIR, WINDOW
from diffusion.utils.content import fingerprint_file
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.hardware import prepare_device
from diffusion.utils.launch import start_processes
from diffusion.utils.text import default_root, read_json

if TYPE_CHECKING:
    from accelerate import PartialState

    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.sweep import Point

DATA_OPTIONS = frozenset(("images", "tokens", "data_root", "patch_names_file", "features_dir", "subset_keys"))
PRDC_SCORES = ("precision", "recall", "density", "coverage")
EXAMPLES = """  python tools/sweep.py --workdir output/256 --guidances 1 1.5 2 3 4 --n_images 5000 --out sweep
  python tools/sweep.py --workdir output/256 --guidances 1.5 2 --intervals all 0.3:5 --steps 10 20 50 --out sweep
  python tools/sweep.py --workdir output/256 --ema_lengths 0.05 0.1 0.15 --checkpoints checkpoints/last_ema.ckpt"""


def main() -> None:
    args = parse_args()
    state = start_processes(prepare_device(args.device))
    from diffusion.encoders.embedder_files import check_encoders
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.sweep import make_grid, parse_interval, read_points, write_sweep
    from diffusion.generation.solver import Solver
    from diffusion.workdir import default_work_dir

    args.workdir = args.workdir or default_work_dir()
    root = args.root or default_root()
    check_encoders(args.encoders, root)
    weights = find_weights(args, state)
    axes = {
        "weights": list(weights),
        "solver": args.solvers or [args.sampling_algo],
        "steps": args.steps or [args.sampling_steps],
        "guidance": args.guidances or [args.guidance_strength],
        "interval": [parse_interval(text) for text in args.intervals],
    }
    points = make_grid(axes)
    for point in points:  # all that can be refused, before hours of sampling
        Solver(point.steps, point.guidance, point.solver, point.interval, args.precision)
    if state.is_main_process:
        check_or_write_settings(args, next(iter(weights.values())))
    state.wait_for_everyone()
    embedders = [PatchEmbedder.load(name, state.device, root=root) for name in args.encoders]
    for note in training_data_notes(args):
        state.print(f"note: {note}")
    for i, point in enumerate(points):
        state.print(f"point {i + 1} of {len(points)}: {point.name}")
        score_point(point, weights[point.weights], args, embedders, state)
    if state.is_main_process:
        about = scoring_settings(args, embedders)
        scored = read_points(args.out / "points", about)  # those of commands before, too
        print_summary(scored, write_sweep(args.out, scored, args.by, about), args)
    state.wait_for_everyone()


def check_or_write_settings(args: argparse.Namespace, checkpoint: Path) -> None:
    """Write which conditions a folder's points share, or check them. Raises InputError that names what differs."""
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.sources import ConditionSource, find_origin

    source = ConditionSource(**condition_arguments(args))
    solver = Solver(**solver_arguments(args))
    session = open_session(**{**session_arguments(args), "checkpoint": checkpoint}, solver=solver)
    now = {"n_images": args.n_images, "seed": args.seed, **find_origin(session, source).content}
    file = args.out / "conditions.json"
    before = read_json(file, "record of conditions", f"name another --out than {args.out}") if file.is_file() else now
    if before.keys() >= DATA_OPTIONS:  # of a version that went by paths
        now = {name: getattr(args, name) for name in ("n_images", "seed", *sorted(DATA_OPTIONS))}
    now = json.loads(json.dumps(now, default=str))
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(f"{args.out} is a sweep with {name} {before.get(name)}, not {value}; name another --out")
    atomic_write_bytes(file, (json.dumps(now, indent=2) + "\n").encode("utf-8"))


def find_weights(args: argparse.Namespace, state: PartialState) -> dict[str, Path]:
    """Return the files of the weights to sample from, by name; averages of other lengths are made of the run's snapshots.

    Raises InputError for two files of the same name.
    """
    from diffusion.training.checkpoints.checkpoint import save_file
    from diffusion.training.checkpoints.posthoc_ema import find_mix, find_snapshots, mix_weights

    checkpoints = args.checkpoints or ([] if args.ema_lengths else [args.checkpoint])
    found = {path.stem: (args.workdir / path).resolve() for path in checkpoints}
    for length in args.ema_lengths:
        mix = find_mix(find_snapshots(args.workdir), length)
        file = (args.out / "weights" / f"ema_{length:.4g}_step_{mix.step}.ckpt").resolve()  # the run may go on
        if state.is_main_process and not file.is_file():
            save_file(mix_weights(mix), file)
        found[file.stem] = file
    if len(found) < len(checkpoints) + len(args.ema_lengths):
        raise InputError("--checkpoints or --ema_lengths: two have one name, and so would their points")
    state.wait_for_everyone()
    return found


def score_point(
    point: Point, checkpoint: Path, args: argparse.Namespace, embedders: list[PatchEmbedder], state: PartialState
) -> None:
    """Sample and score a point, unless its folder already has the scores of exactly these samples."""
    from diffusion.evaluation.measure import REAL, SYNTHETIC, ScoringOptions, score_sets, scores_by_encoder
    from diffusion.evaluation.sets.embedding import Timing
    from diffusion.evaluation.sets.image_set import ImageSet
    from diffusion.generation.output_folder import OutputFolder
    from diffusion.generation.sample_patches import sample_patches
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.sources import ConditionSource

    folder, real = args.out / "points" / point.name, args.real or args.out / REAL_DIR
    has_real = args.real is not None or count_files(real) >= args.n_images
    if has_real and is_done(folder, point, checkpoint, args, embedders):
        return
    state.wait_for_everyone()  # all have checked before one of them writes
    source = ConditionSource(**condition_arguments(args))
    solver = Solver(point.steps, point.guidance, point.solver, point.interval, args.precision)
    session = open_session(**{**session_arguments(args), "checkpoint": checkpoint}, solver=solver)
    output = OutputFolder(folder, "png", tissue=real)
    size = sample_patches(
        session,
        source,
        output,
        sizes=(256, 512, 1024),
        count=args.n_images,
        index_count=args.n_images,
        batch_size=args.batch_size,
        with_real=not has_real,
        needs_real=not has_real,
    )
    fit = "windows" if size > WINDOW and args.on_size == "refuse" else args.on_size
    sources = {REAL: ImageSet.open(real, fit), SYNTHETIC: ImageSet.open(folder / SYNTHETIC_DIR, fit)}
    options = ScoringOptions(METRICS, args.seed, args.bootstrap, args.batch_size, args.workers, args.strict)
    cache = args.cache or args.out / "features"
    parts = [score_sets(sources, embedder, cache, state, options, Timing()) for embedder in embedders]
    measured = [part for part in parts if part is not None]  # all in the main process, none in the others
    if state.is_main_process:
        record = {"about": point_settings(folder, point, checkpoint, args, embedders), "point": asdict(point)}
        record["encoders"] = scores_by_encoder(measured)
        atomic_write_bytes(folder / "scores.json", (json.dumps(record, indent=2) + "\n").encode("utf-8"))
    state.wait_for_everyone()


def is_done(
    folder: Path, point: Point, checkpoint: Path, args: argparse.Namespace, embedders: list[PatchEmbedder]
) -> bool:
    """Return whether a point was scored with the same weights, samples, real images and settings."""
    file = folder / "scores.json"
    if not file.is_file():
        return False
    stored = read_json(file, "record of scores", "delete it").get("about")
    return stored == point_settings(folder, point, checkpoint, args, embedders)


def point_settings(
    folder: Path, point: Point, checkpoint: Path, args: argparse.Namespace, embedders: list[PatchEmbedder]
) -> dict[str, Any]:
    """Return everything that the scores of a point depend on."""
    return {
        **scoring_settings(args, embedders),
        "weights": [args.weights, weights_fingerprint(checkpoint)],
        "samples": hash_folder(folder / SYNTHETIC_DIR),
    }


@cache
def weights_fingerprint(checkpoint: Path) -> str:
    """Hash the content of a weights file, or of those in a folder as diffusers writes it; empty without any."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.glob("**/*.safetensors"))
    return " ".join(map(fingerprint_file, files))


def scoring_settings(args: argparse.Namespace, embedders: list[PatchEmbedder]) -> dict[str, Any]:
    """Return the settings that all points of one table have in common."""
    return {
        "n_images": args.n_images,
        "real": hash_folder(args.real or args.out / REAL_DIR),
        "encoders": {embedder.name: embedder.fingerprint for embedder in embedders},
        "metrics": list(METRICS),
        **{name: getattr(args, name) for name in ("seed", "bootstrap", "on_size", "precision", "compile")},
    }


def hash_folder(folder: Path) -> str:
    """Hash the names, sizes and times of change of a folder's images; empty for a folder that is missing or empty."""
    from diffusion.evaluation.sets.cache import hash_files
    from diffusion.evaluation.sets.image_set import ImageSet

    return hash_files(ImageSet.open(folder).files) if count_files(folder) else ""


def count_files(folder: Path) -> int:
    """Return the number of entries of a folder that are not hidden; 0 for a folder that is missing."""
    return sum(path.name[0] != "." for path in folder.iterdir()) if folder.is_dir() else 0


def print_summary(scored: dict[Point, dict[str, Any]], best: Point, args: argparse.Namespace) -> None:
    """Print every point's score, how far its Frechet distance is above that of the best point, and the notes."""
    from diffusion.evaluation.metrics.scores import QUANTITIES
    from diffusion.evaluation.sweep import difference_to_best
    from diffusion.utils.text import format_number

    encoder = next(iter(scored[best]))
    differences = difference_to_best(scored, best, encoder) if args.by == "fd" else {}
    for point, record in scored.items():
        value = record[encoder]["values"].get(args.by)
        line = f"{point.name}: {args.by} {format_number(value['value'])}" if value else f"{point.name}: no {args.by}"
        if point in differences:
            above, low, high = (format_number(part) for part in differences[point] if part is not None)
            line += f", {above} above the best ({low} to {high})"
        print(line)
    for note in scored[best][encoder]["notes"]:
        print(f"note: {note}")
    equal = [point.name for point, value in differences.items() if value.low is not None and value.low <= 0]
    if equal:
        print(f"note: the best is not told apart from {', '.join(equal)}; more images would tell.")
    if len(scored) > 1:
        print(f"best by {QUANTITIES[args.by].title} ({encoder}): {best.name}")
    print(f"written: {args.out / 'sweep.csv'}")


def parse_args() -> argparse.Namespace:
    parser = patch_sampler_parser(__doc__, EXAMPLES, out_dir=None, count=1000, batch_size=16)
    add = parser.add_argument_group(
        "what is swept; where nothing is given, the value of the sampling option holds"
    ).add_argument
    add("--guidances", type=finite_float, nargs="+", metavar="W", help="guidance strengths")
    add("--steps", type=positive_int, nargs="+", metavar="N", help="steps of the solver")
    add("--solvers", nargs="+", choices=SOLVERS, help="solvers")
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
    add("--by", default="fd", choices=BEST_BY, help="the score, by the first encoder, that says which point is best")
    add("--bootstrap", type=natural_int, default=50, help="replicates for the interval of a distance; 0: no interval")
    add_scoring_options(parser, "sweep")
    args = parser.parse_args()
    if args.tokens and args.real is None:
        parser.error("--tokens have no tissue to score against; name a folder of real images with --real")
    if args.real is not None and not args.real.is_dir():
        parser.error(f"--real {args.real}: no such folder")
    args.n_images = args.n_images or (len(args.images) if args.images else args.count)
    if args.by in PRDC_SCORES and args.n_images <= 5:
        parser.error(f"--by {args.by} needs more than 5 images")
    return args


if __name__ == "__main__":
    run(main)
