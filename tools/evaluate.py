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

from diffusion.cli import Parser, default_root, natural_int, output_folder, pick_device, run, start_processes
from diffusion.sampler_cli import GROUPS, of_training, patch_sampler_parser

if TYPE_CHECKING:
    from diffusion.evaluation.features import Timing
    from diffusion.evaluation.measure import Measured

EXAMPLES = """  python tools/evaluate.py --real samples_256/real --syn samples_256/syn --encoders mobilenetv2 uni2
  python tools/evaluate.py --real real --syn syn --encoders timm/resnet50.a1_in1k=model.safetensors --train training/
  python tools/evaluate.py --workdir output/256 --n_images 5000 --guidance_strength 2 --out report
  accelerate launch tools/evaluate.py --real features_real.npy --syn features_syn.npy"""
ON_SIZE = ("refuse", "resize", "windows")  # FITS of diffusion.evaluation.images, which would take seconds to import
METRICS = ("fd", "fd_infinity", "kid", "prdc", "similarity", "neighbours")


def main() -> None:
    args = parse_args()
    origin = sample(args) if args.workdir is not None else []
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.features import Features, Timing
    from diffusion.evaluation.measure import REAL, SYNTHETIC, TRAINING, UNTRAINED, Options, measure, open_sources
    from diffusion.evaluation.provenance import read_settings
    from diffusion.evaluation.report import About, read_losses, write_report

    # All that can be refused is read before the network runs.
    places = {REAL: args.real, SYNTHETIC: args.syn, UNTRAINED: args.untrained, TRAINING: args.train}
    sources = open_sources(places, args.on_size)
    losses = read_losses(args.run) if args.run else None
    settings = read_settings(args.syn) if args.syn.is_dir() else {}
    state = start_processes(pick_device(args.device))
    metrics = tuple(args.metrics)
    options = Options(metrics, args.seed, args.bootstrap, args.batch_size, args.workers, args.strict)
    timing, measured = Timing(), []
    encoders = [None] if isinstance(sources[REAL], Features) else args.encoders
    for encoder in encoders:
        embedder = encoder and PatchEmbedder.load(encoder, state.device, root=args.root or default_root())
        measured.append(measure(sources, embedder, args.cache or args.out / "features", state, options, timing))
    if state.is_main_process:
        about = About(args.note, args.seed, args.bootstrap, settings, losses, timing, origin)
        notes = write_report(args.out, measured, sources, about)
        tell(measured, notes, timing)
        print(f"written: {args.out / 'index.html'}")
    state.wait_for_everyone()


def sample(args: argparse.Namespace) -> list[str]:
    """Fill OUT/samples from the run, and have it scored; what is to be known of it, in sentences."""
    from diffusion.engine.sample_command import sample_patches

    args.out_dir = args.out / "samples"
    size = sample_patches(args, sizes=(256, 512, 1024))
    args.real, args.syn = args.out_dir / "real", args.out_dir / "syn"
    if args.run is None and (args.workdir / "tensorboard").is_dir():
        args.run = args.workdir
    if size > 256 and args.on_size == "refuse":
        args.on_size = "windows"
    return of_training(args)


def tell(measured: list[Measured], notes: list[str], timing: Timing) -> None:
    """Print what the page shows."""
    from diffusion.evaluation.page import short
    from diffusion.evaluation.scores import QUANTITIES

    for part in measured:
        print(f"{part.scores.encoder}:")
        for name, value in part.scores.values.items():
            interval = "" if value.low is None else f"  ({short(value.low)} to {short(value.high)})"
            compared = part.untrained.values.get(name) if part.untrained else None
            beside = "" if compared is None else f"  untrained {short(compared.value)}"
            print(f"  {QUANTITIES[name].title}: {short(value.value)}{interval}{beside}")
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
    add("--encoders", nargs="+", default=["mobilenetv2"], metavar="NAME",
        help="uni2, mobilenetv2, inception, a weights file or its folder, NAME=PATH, timm/NAME=PATH, torchvision/NAME=PATH")  # fmt: skip
    add("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="what is measured [all that applies]")
    add("--on_size", choices=ON_SIZE, default="refuse",
        help="images that are not 256 x 256: refuse, resize the square in their middle, or score their windows of 256")  # fmt: skip
    add("--bootstrap", type=natural_int, default=50, help="replicates for the interval of a distance; 0: no interval")
    add(
        "--strict",
        action="store_true",
        help="refuse images that cannot be read or have no partner, instead of noting them",
    )
    add("--run", type=Path, metavar="WORKDIR", help="work dir of the training run, for its losses")
    add("--cache", type=Path, help="folder that keeps features for the next time [OUT/features]")
    add("--workers", type=natural_int, default=1, help="processes that read images")
    add("--out", type=output_folder, default=Path("report"), help="folder for the report")
    add("--note", default="", metavar="TEXT", help="a line at the head of the page")
    args = parser.parse_args()
    if args.workdir is not None and (args.real or args.syn):
        parser.error("--workdir and --real or --syn: either a run is sampled, or what is there is scored")
    if args.workdir is None and not (args.real and args.syn):
        missing = (
            "--real and --syn, or --workdir" if not (args.real or args.syn) else "--syn" if args.real else "--real"
        )
        parser.error(f"{missing}: missing; expected two sets to compare, or a run to sample")
    if args.workdir is None:
        refuse_options_of_sampling(parser, args)
    return args


def refuse_options_of_sampling(parser: Parser, args: argparse.Namespace) -> None:
    """Nothing is sampled: an option for it is a mistake, --encoder for --encoders above all."""
    for group in parser._action_groups:
        for action in group._group_actions if group.title in GROUPS else ():
            if action.dest != "batch_size" and str(getattr(args, action.dest)) != str(action.default):
                hint = "; the encoder of scores is named with --encoders" if action.dest == "encoder" else ""
                parser.error(
                    f"{action.option_strings[0]} is of sampling, and nothing is sampled with --real and --syn{hint}"
                )


if __name__ == "__main__":
    run(main)
