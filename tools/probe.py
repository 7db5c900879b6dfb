"""How useful synthetic patches are: a linear probe and k-NN on frozen embeddings, trained on real, synthetic or both, tested on real.

Folders hold one folder per class, with the images of the class at any depth below it. Folders between class and image are taken
for slides: intervals then come from resampling whole slides of the test set, since patches of a slide are not independent.
OUT gets scores.json, scores.csv and plot.png; features stay in --cache, so that another k, seed or --per_class takes seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import positive_int, run, tool_parser
from diffusion.cli.scoring_options import add_scoring_options
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.hardware import prepare_device
from diffusion.utils.launch import start_processes
from diffusion.utils.text import abbreviate, format_table

if TYPE_CHECKING:
    from accelerate import PartialState

    from diffusion.evaluation.probe import ProbeResult
    from diffusion.evaluation.sets.features import Features
    from diffusion.evaluation.sets.image_set import ImageSet

EXAMPLES = """  python tools/probe.py --real train/ --syn samples/ --test test/ --encoders mobilenetv2 uni2 --out probe
  python tools/probe.py --real train/ --syn samples/ --test test/ --per_class 16 --seed 1 --cache probe/features --out probe_16
  accelerate launch tools/probe.py --real train/ --test test/ --encoders uni2 timm/resnet50=resnet50.pth --batch_size 256"""


def main() -> None:
    args = parse_args()
    from diffusion.encoders.embedder_files import check_encoders
    from diffusion.evaluation.sets.classes import choose_training_sets, find_leaks, images_by_class, open_classes

    # All that can be refused is read before a network runs.
    folders = {"test": args.test, "real": args.real, "synthetic": args.syn}
    images = {name: open_classes(folder, args.on_size) for name, folder in folders.items() if folder is not None}
    test, training = images["test"], {name: each for name, each in images.items() if name != "test"}
    trainings, notes = choose_training_sets(training, test)
    for name, each in training.items():
        if few := [label for label, count in images_by_class(each).items() if count < (args.per_class or 0)]:
            notes.append(f"All {name} images of {abbreviate(few)} are taken: they are fewer than {args.per_class}.")
    warnings = [leak for name, each in training.items() for leak in find_leaks(name, each, test)]
    check_encoders(args.encoders, args.root)
    state = start_processes(prepare_device(args.device))
    features = embed_sets(images, args, state)
    if not state.is_main_process:
        return
    classes = list(images_by_class(test))
    results, more = run_all_probes(features, trainings, classes, args)
    bad = {name: each.bad for name, each in next(iter(features.values())).items() if each.bad}
    warnings += [describe_unreadable(name, images[name], wrong) for name, wrong in bad.items()]
    about = {
        "classes": classes,
        "images": {
            name: {"folder": str(each.folder), "classes": images_by_class(each)} for name, each in images.items()
        },
        "left_out": bad,
        "per_class": args.per_class,
        "seed": args.seed,
        "warnings": warnings,
        "notes": notes + more,
    }
    write_results(args.out, about, results)
    print_summary(about, results)
    print(f"written: {args.out / 'scores.json'}, scores.csv, plot.png")


def embed_sets(
    images: Mapping[str, ImageSet], args: argparse.Namespace, state: PartialState
) -> dict[str, dict[str, Features]]:
    """Return the features of every set, by the name of the encoder."""
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.sets.embedding import embed_set

    cache = args.cache or args.out / "features"
    found: dict[str, dict[str, Features]] = {}
    for encoder in args.encoders:
        embedder = PatchEmbedder.load(encoder, state.device, root=args.root)
        found[embedder.name] = {
            name: embed_set(each, embedder, cache, state, args.batch_size, args.workers, args.strict)
            for name, each in images.items()
        }
    return found


def run_all_probes(
    features: Mapping[str, Mapping[str, Features]],
    trainings: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    args: argparse.Namespace,
) -> tuple[dict[str, list[ProbeResult]], list[str]]:
    """Return the results of each encoder's probes, and sentences on what a reader of their scores must know."""
    from functools import reduce

    from tqdm import tqdm

    from diffusion.evaluation.classifiers import limit_k
    from diffusion.evaluation.probe import PROBES, interval_notes, run_probes
    from diffusion.evaluation.sets.labelled import LabelledEmbeddings

    results: dict[str, list[ProbeResult]] = {}
    notes: list[str] = []
    total = len(features) * len(trainings) * len(PROBES)
    with tqdm(total=total, unit="probe", leave=False) as bar:
        for encoder, features_of_sets in features.items():
            bar.set_description(encoder)
            test = LabelledEmbeddings.from_features(features_of_sets["test"], classes)
            parts = {
                name: LabelledEmbeddings.from_features(each, classes, args.per_class, args.seed)
                for name, each in features_of_sets.items()
                if name != "test"
            }
            sets = {
                name: reduce(LabelledEmbeddings.concat, [parts[part] for part in names])
                for name, names in trainings.items()
            }
            results[encoder] = run_probes(sets, test, classes, args.k, args.seed, bar.update)
            if not notes:  # they are the same for all encoders
                notes += interval_notes(test, classes)
                if (k := limit_k(args.k, sets.values(), classes)) < args.k:
                    notes.append(f"k is {k} and not {args.k}: a class has no more training images on average.")
    for encoder, probed in results.items():
        notes += [
            f"{encoder}, {PROBES[each.probe]} on {each.training}: {note}" for each in probed for note in each.notes
        ]
    return results, notes


def describe_unreadable(name: str, images: ImageSet, wrong: Mapping[str, str]) -> str:
    """Return a sentence on the images of a set that could not be used."""
    first, reason = next(iter(wrong.items()))
    return f"{len(wrong)} of {len(images.files)} {name} images left out, such as {images.files[first]}: {reason}."


def write_results(out: Path, about: Mapping[str, Any], results: Mapping[str, Sequence[ProbeResult]]) -> None:
    """Write the picture and the two files of numbers."""
    from diffusion.evaluation.metrics.classification import chance_level
    from diffusion.evaluation.reports.probe_report import format_csv, plot_probes, results_to_dict

    chance = chance_level(next(iter(results.values()))[0].confusion)
    record = {**about, "chance": chance, "encoders": results_to_dict(results)}
    contents = {
        "plot.png": plot_probes(results, chance),
        "scores.csv": format_csv(results).encode(),
        "scores.json": (json.dumps(record, indent=2) + "\n").encode(),
    }
    for name, content in contents.items():
        atomic_write_bytes(out / name, content)


def print_summary(about: Mapping[str, Any], results: Mapping[str, Sequence[ProbeResult]]) -> None:
    """Print the tables of scores and differences, notes and warnings."""
    from diffusion.evaluation.reports.probe_report import difference_rows, score_rows

    print(format_table(score_rows(results)))
    if rows := difference_rows(results):
        print(f"\n{format_table(rows)}")
    print()
    for label in ("note", "warning"):
        for sentence in about[f"{label}s"]:
            print(f"{label}: {sentence}")


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--real", type=Path, metavar="DIR", help="real images to train on, a folder per class")
    add("--syn", type=Path, metavar="DIR", help="synthetic images to train on, a folder per class")
    add("--test", type=Path, metavar="DIR", required=True, help="real images to test on, a folder per class")
    add(
        "--k",
        type=positive_int,
        default=20,
        help="neighbours that vote; no more than a class has training images on average",
    )
    add(
        "--per_class",
        type=positive_int,
        metavar="N",
        help="training images of each class and set, drawn at random [all]",
    )
    add("--batch_size", type=positive_int, default=32, help="windows embedded at once")
    add_scoring_options(parser, "probe")
    args = parser.parse_args()
    if args.real is None and args.syn is None:
        parser.error("expected --real or --syn, or both: what to train on")
    return args


if __name__ == "__main__":
    run(main)
