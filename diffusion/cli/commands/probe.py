"""pixcell probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from diffusion.cli import options
from diffusion.cli.parser import positive_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.formats import NETWORK_MPP
from diffusion.utils.errors import InputError


@checked
def probe(
    test: Annotated[Path, Option("real images to test on, a folder per class", metavar="DIR")],
    train_real: Annotated[Path | None, Option("real images to train on, a folder per class", metavar="DIR")] = None,
    train_syn: Annotated[Path | None, Option("synthetic images to train on, a folder per class", metavar="DIR")] = None,
    out: options.OutFolder = Path("probe"),
    k: Annotated[
        int,
        Option("neighbours that vote; no more than a class has training images on average", positive_int),
    ] = 20,
    per_class: Annotated[
        int | None,
        Option("training images of each class and set, drawn at random [all]", positive_int, metavar="N"),
    ] = None,
    seed: options.Seed = 0,
    encoders: options.Encoders = ("mobilenetv2",),
    on_size: options.OnSize = "refuse",
    strict: options.Strict = False,
    cache: options.Cache = None,
    root: options.Root = None,
    batch_size: Annotated[options.BatchSize, Here("32; of the U-Net 8")] = None,
    workers: options.Workers = 1,
    device: options.Device = "auto",
    segmentation: Annotated[
        bool, Option("segment nuclei with a small U-Net instead of telling classes; every image needs a mask")
    ] = False,
    train_steps: Annotated[int, Option("steps of the U-Net, on every set alike", positive_int)] = 400,
    mpp: options.CellMpp = NETWORK_MPP,
) -> None:
    """Measure how useful synthetic patches are to classifiers that are tested on real ones.

    A linear probe and k-NN on frozen embeddings are trained on real, on synthetic and on both kinds of images. Folders hold
    one folder per class, with the images of the class at any depth below it. Folders between class and image are taken for
    slides: intervals then come from resampling whole slides of the test set, since patches of a slide are not independent.
    OUT gets scores.json, scores.csv and plot.png; features stay in --cache, so that another --k, --seed or --per-class takes
    seconds.

    With --segmentation there are no classes: a small U-Net learns to segment nuclei from real pairs of image and mask, from
    synthetic ones, or from both, and OUT gets Dice, AJI and PQ on real test images. A mask is <image>_mask.png beside the image,
    as `pixcell masks` writes it, or control/<image>.png beside the folder, as `pixcell sample` does.

    Examples:
      pixcell probe --train-real train/ --train-syn samples/ --test test/ --encoders mobilenetv2 uni2 --out probe
      pixcell probe --train-syn samples/ --test test/ --per-class 16 --seed 1 --cache probe/features --out probe_16
      accelerate launch -m pixcell probe --train-real train/ --test test/ --encoders uni2 --batch-size 256
      pixcell probe --segmentation --train-real patches/mine --train-syn made/syn --test patches/mine_heldout
    """
    if train_real is None and train_syn is None:
        raise InputError("expected --train-real or --train-syn, or both: what to train on")
    if not segmentation and (train_steps != 400 or mpp != NETWORK_MPP):
        raise InputError(f"--{'mpp' if train_steps == 400 else 'train-steps'} is of --segmentation, which is not given")
    if segmentation:
        others = {
            "--k": k != 20,
            "--per-class": per_class is not None,
            "--encoders": tuple(encoders) != ("mobilenetv2",),
        }
        if given := [name for name, is_given in others.items() if is_given]:
            raise InputError(f"{given[0]} is of probes of classes: leave it out with --segmentation")
        probe_masks(test, train_real, train_syn, out, seed, on_size, device, train_steps, batch_size, mpp)
        return

    from diffusion.encoders.embedder_files import check_encoders
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.probe import probe_encoders
    from diffusion.evaluation.reports.probe_report import difference_rows, score_rows, write_probe_report
    from diffusion.evaluation.sets.classes import (
        choose_training_sets,
        describe_unreadable,
        find_leaks,
        images_by_class,
        open_classes,
    )
    from diffusion.evaluation.sets.embedding import embed_set
    from diffusion.evaluation.sets.features import Features
    from diffusion.utils.hardware import prepare_device
    from diffusion.utils.launch import start_processes
    from diffusion.utils.text import abbreviate, default_root

    # All that can be refused is read before a network runs.
    home = root or default_root()
    folders = {"test": test, "real": train_real, "synthetic": train_syn}
    images = {name: open_classes(folder, on_size) for name, folder in folders.items() if folder is not None}
    training = {name: each for name, each in images.items() if name != "test"}
    trainings, notes = choose_training_sets(training, images["test"])
    for name, each in training.items():
        if few := [label for label, count in images_by_class(each).items() if count < (per_class or 0)]:
            notes.append(f"All {name} images of {abbreviate(few)} are taken: they are fewer than {per_class}.")
    warnings = [leak for name, each in training.items() for leak in find_leaks(name, each, images["test"])]
    check_encoders(encoders, home)
    place = prepare_device(device)
    state = start_processes(place)
    found: dict[str, dict[str, Features]] = {}
    for encoder in encoders:
        embedder = PatchEmbedder.load(encoder, state.device or place, root=home)
        reading = (cache or out / "features", state, batch_size or 32, workers or 0, strict)
        found[embedder.name] = {name: embed_set(each, embedder, *reading) for name, each in images.items()}
    if not state.is_main_process:
        return
    classes = list(images_by_class(images["test"]))
    results, more = probe_encoders(found, trainings, classes, k, per_class, seed)
    bad = {name: each.bad for name, each in next(iter(found.values())).items() if each.bad}
    warnings += [describe_unreadable(name, images[name], wrong) for name, wrong in bad.items()]
    about = {
        "classes": classes,
        "images": {
            name: {"folder": str(each.folder), "classes": images_by_class(each)} for name, each in images.items()
        },
        "left_out": bad,
        "per_class": per_class,
        "seed": seed,
        "warnings": warnings,
        "notes": notes + more,
    }
    write_probe_report(out, about, results)
    print_summary(about, score_rows(results), difference_rows(results))
    print(f"written: {out / 'scores.json'}, scores.csv, plot.png")


def probe_masks(
    test: Path,
    train_real: Path | None,
    train_syn: Path | None,
    out: Path,
    seed: int,
    on_size: str,
    device: str,
    steps: int,
    batch_size: int | None,
    mpp: float,
) -> None:
    """Train a segmenter on each set, and write and print its scores."""
    from functools import reduce

    from tqdm import tqdm

    from diffusion.evaluation.metrics.intervals import CLUSTER_RESAMPLES
    from diffusion.evaluation.reports.segmentation_report import (
        difference_rows,
        score_rows,
        write_segmentation_report,
    )
    from diffusion.evaluation.segmentation import TrainingOptions, probe_segmentation
    from diffusion.evaluation.sets.classes import find_leaks
    from diffusion.evaluation.sets.image_set import ImageSet
    from diffusion.evaluation.sets.masked_images import MaskedImages, load_masked_images, resample_slides, slide_of
    from diffusion.utils.hardware import prepare_device
    from diffusion.utils.launch import start_processes

    folders = {"test": test, "real": train_real, "synthetic": train_syn}
    images = {name: ImageSet.open(folder, on_size) for name, folder in folders.items() if folder is not None}
    training = {name: each for name, each in images.items() if name != "test"}
    warnings = [leak for name, each in training.items() for leak in find_leaks(name, each, images["test"], slide_of)]
    place = prepare_device(device)
    state = start_processes(place)
    if not state.is_main_process:  # one network of a minute is not shared
        return
    loaded = {name: load_masked_images(each, mpp) for name, each in images.items()}
    tested = loaded.pop("test")
    sets = loaded | ({"both": reduce(MaskedImages.concat, loaded.values())} if len(loaded) > 1 else {})
    tested, slides = resample_slides(tested)
    notes = [f"Intervals (95 %) are from {CLUSTER_RESAMPLES} resamples of the test set's {slides}."]
    with tqdm(total=steps * len(sets), unit="step", leave=False) as bar:
        chosen = TrainingOptions(steps, batch_size or 8, seed, mpp)
        results, found = probe_segmentation(sets, tested, chosen, state.device or place, bar.update)
    about = {
        "images": {name: {"folder": str(each.folder), "files": len(each.files)} for name, each in images.items()},
        "steps": steps, "batch_size": chosen.batch_size, "seed": seed, "mpp": mpp, "warnings": warnings, "notes": notes,
    }  # fmt: skip
    write_segmentation_report(out, about, results, tested, found)
    print_summary(about, score_rows(results), difference_rows(results))
    print(f"written: {out / 'scores.json'}, scores.csv, examples.png")


def print_summary(
    about: Mapping[str, Any], scores: Sequence[tuple[str, ...]], differences: Sequence[tuple[str, ...]]
) -> None:
    """Print the tables of scores and differences, notes and warnings."""
    from diffusion.utils.text import format_table

    print(format_table(scores))
    if differences:
        print(f"\n{format_table(differences)}")
    print()
    for label in ("note", "warning"):
        for sentence in about[f"{label}s"]:
            print(f"{label}: {sentence}")
