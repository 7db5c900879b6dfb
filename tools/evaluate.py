"""Score synthetic images against real ones, and write a page that opens in any browser, without network.

Give two folders of images (--real, --syn; a synthetic image belongs to the real one of the same path below its folder,
suffix aside), two files of features (.npy, .npz), or a run to sample from (--workdir). OUT/index.html is the page,
OUT/scores.json its numbers, OUT/pairs.csv the similarity of every pair, OUT/pairs.png a picture of some.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import Parser, natural_int, run
from diffusion.cli.sampling_options import (
    OPTION_GROUPS,
    condition_arguments,
    patch_sampler_parser,
    session_arguments,
    solver_arguments,
    training_data_notes,
)
from diffusion.cli.scoring_options import add_scoring_options
from diffusion.formats import METRICS, REAL_DIR, SYNTHETIC_DIR, WINDOW
from diffusion.utils.hardware import prepare_device
from diffusion.utils.launch import start_processes
from diffusion.utils.text import default_root

if TYPE_CHECKING:
    from diffusion.evaluation.measure import EncoderScores
    from diffusion.evaluation.sets.embedding import Timing

EXAMPLES = """  python tools/evaluate.py --real samples_256/real --syn samples_256/syn --encoders mobilenetv2 uni2
  python tools/evaluate.py --real real --syn syn --encoders timm/resnet50.a1_in1k=model.safetensors --train training/
  python tools/evaluate.py --workdir output/256 --n_images 5000 --guidance_strength 2 --out report
  accelerate launch tools/evaluate.py --real features_real.npy --syn features_syn.npy"""


def main() -> None:
    args = parse_args()
    from diffusion.encoders.embedder_files import check_encoders
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.measure import (
        REAL,
        SYNTHETIC,
        TRAINING,
        UNTRAINED,
        ScoringOptions,
        open_sources,
        score_sets,
    )
    from diffusion.evaluation.reports.report import ReportInfo, read_losses, write_report
    from diffusion.evaluation.sets.embedding import Timing
    from diffusion.evaluation.sets.provenance import read_sampling_settings

    # All that can be refused is read before a network runs.
    root = args.root or default_root()
    if args.workdir is not None and args.run is None and (args.workdir / "tensorboard").is_dir():
        args.run = args.workdir
    losses = read_losses(args.run) if args.run else None
    has_images = args.workdir is not None or args.real.is_dir()
    if has_images:
        check_encoders(args.encoders, root)
    origin = sample_run(args) if args.workdir is not None else []
    places = {REAL: args.real, SYNTHETIC: args.syn, UNTRAINED: args.untrained, TRAINING: args.train}
    sources = open_sources(places, args.on_size)
    settings = read_sampling_settings(args.syn) if args.syn.is_dir() else {}
    state = start_processes(prepare_device(args.device))
    options = ScoringOptions(tuple(args.metrics), args.seed, args.bootstrap, args.batch_size, args.workers, args.strict)
    timing, measured = Timing(), []
    for encoder in args.encoders if has_images else [None]:
        embedder = encoder and PatchEmbedder.load(encoder, state.device, root=root)
        measured.append(score_sets(sources, embedder, args.cache or args.out / "features", state, options, timing))
    if state.is_main_process:
        how = {kind: str(place) for kind, place in places.items() if place is not None}
        how |= {"images of other sizes": args.on_size, "metrics": " ".join(args.metrics), "seed": str(args.seed)}
        how |= {"replicates of intervals": str(args.bootstrap)}
        about = ReportInfo(args.note, args.seed, how, settings, losses, timing, origin)
        notes = write_report(args.out, measured, sources, about)
        print_summary(measured, notes, timing)
        print(f"written: {args.out / 'index.html'}")
    state.wait_for_everyone()


def sample_run(args: argparse.Namespace) -> list[str]:
    """Sample the run into OUT/samples and set these to be scored; return notes on them, in sentences."""
    from diffusion.generation.output_folder import OutputFolder
    from diffusion.generation.sample_patches import sample_patches
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.sources import ConditionSource

    source = ConditionSource(**condition_arguments(args))
    session = open_session(**session_arguments(args), solver=Solver(**solver_arguments(args)))
    samples, sizes = args.out / "samples", (256, 512, 1024)
    folder = OutputFolder(samples, args.format)
    size = sample_patches(session, source, folder, sizes, args.n_images, args.count, args.batch_size, needs_real=True)
    args.real, args.syn = samples / REAL_DIR, samples / SYNTHETIC_DIR
    if size > WINDOW and args.on_size == "refuse":
        args.on_size = "windows"
    return training_data_notes(args)


def print_summary(measured: list[EncoderScores], notes: list[str], timing: Timing) -> None:
    """Print what the page shows."""
    from diffusion.evaluation.metrics.scores import QUANTITIES
    from diffusion.utils.text import format_number

    for part in measured:
        print(f"{part.scores.encoder}:")
        for name, value in part.scores.values.items():
            interval = (
                ""
                if value.low is None or value.high is None
                else f"  ({format_number(value.low)} to {format_number(value.high)})"
            )
            compared = part.untrained.values.get(name) if part.untrained else None
            beside = "" if compared is None else f"  untrained {format_number(compared.value)}"
            print(f"  {QUANTITIES[name].title}: {format_number(value.value)}{interval}{beside}")
    for note in notes:
        print(f"note: {note}")
    if timing.images:
        share = f"{100 * timing.encoder_share:.0f} % of it in the encoder"
        print(f"{timing.images} images embedded in {timing.seconds:.1f} s, {share}")


def parse_args() -> argparse.Namespace:
    parser = patch_sampler_parser(__doc__, EXAMPLES, out_dir=None, count=5000, batch_size=32)
    add = parser.add_argument_group("scoring").add_argument
    add("--real", type=Path, help="folder of real images, or file of their features")
    add("--syn", type=Path, help="the same of synthetic ones; samples.json beside a folder is shown as settings")
    add("--untrained", type=Path, help="the same of an untrained network, to compare with")
    add("--train", type=Path, help="the same of training images, among which each sample's nearest is looked up")
    add("--metrics", nargs="+", choices=METRICS, default=list(METRICS),
        help="fd_infinity: FD extrapolated to infinitely many images; prdc: precision, recall, density, coverage; "
             "similarity: of pairs; neighbours: the nearest training images [all that applies]")  # fmt: skip
    add("--bootstrap", type=natural_int, default=50, help="replicates for the interval of a distance; 0: no interval")
    add("--run", type=Path, metavar="WORKDIR", help="work dir of the training run, for its losses")
    add("--note", default="", metavar="TEXT", help="a line at the head of the page")
    add_scoring_options(parser, "report")
    args = parser.parse_args()
    if args.workdir is not None and (args.real or args.syn):
        parser.error("--workdir and --real or --syn: either a run is sampled, or what is there is scored")
    if args.workdir is None and not (args.real and args.syn):
        missing = (
            "--real and --syn, or --workdir" if not (args.real or args.syn) else "--syn" if args.real else "--real"
        )
        parser.error(f"{missing}: missing; expected two sets to compare, or a run to sample")
    if args.workdir is None:
        refuse_sampling_options(parser, args)
    if args.tokens:
        parser.error("--tokens have no tissue to score against; sample them first, then give --real and --syn")
    if args.metrics == ["neighbours"] and args.train is None:
        parser.error("--metrics neighbours: among which images? Name those of training with --train")
    return args


def refuse_sampling_options(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse options of sampling where nothing is sampled: they are a mistake, such as --encoder for --encoders."""
    for group in parser._action_groups:
        for action in group._group_actions if group.title in OPTION_GROUPS else ():
            if action.dest != "batch_size" and str(getattr(args, action.dest)) != str(action.default):
                hint = "; the encoder of scores is named with --encoders" if action.dest == "encoder" else ""
                parser.error(
                    f"{action.option_strings[0]} is of sampling, and nothing is sampled with --real and --syn{hint}"
                )


if __name__ == "__main__":
    run(main)
