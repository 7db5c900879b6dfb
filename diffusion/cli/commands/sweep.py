"""pixcell sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffusion.cli import options
from diffusion.cli.parser import positive_float
from diffusion.cli.signature import Here, Option, checked
from diffusion.cli.unused import refuse_unused_conditions
from diffusion.evaluation.metrics.quantities import BEST_BY, COMPARED_METRICS, PRDC_NEIGHBOURS, QUANTITIES
from diffusion.formats import DEFAULT_SOLVER, DEFAULT_STEPS, LAST_WEIGHTS, NETWORK_MPP, REAL_DIR
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from diffusion.evaluation.sweep import Point, ScoredPoints

SIZES = (256, 512, 1024)
COUNT = 1000  # of an index or of tokens


@checked
def sweep(
    workdir: Annotated[options.Workdir, Here(note=options.NANO_NOTE)] = None,
    out: options.OutFolder = Path("sweep"),
    count: Annotated[options.Count, Here(f"{COUNT}; of --images one each")] = None,
    seed: options.Seed = 0,
    guidance: Annotated[options.SeveralGuidances, Here("2, or that of a student")] = (),
    steps: options.SeveralSteps = (),
    solver: options.SeveralSolvers = (),
    guidance_interval: options.SeveralIntervals = (),
    checkpoint: Annotated[options.SeveralCheckpoints, Here(f"{LAST_WEIGHTS}, or none beside --ema-lengths")] = (),
    ema_lengths: Annotated[
        Sequence[float],
        Option(
            "lengths of averages made of the snapshots of a run with power_ema",
            positive_float,
            metavar="LENGTH",
            group=options.SAMPLING,
        ),
    ] = (),
    weights: options.Weights = "ema",
    vae: options.Vae = None,
    real: Annotated[options.Real, Here("the tissue that conditions")] = None,
    by: Annotated[
        str,
        Option(
            "the score, by the first encoder, that says which point is best", choices=BEST_BY, group=options.SCORING
        ),
    ] = "fd",
    encoders: options.Encoders = ("mobilenetv2",),
    bootstrap: options.Bootstrap = 50,
    on_size: options.OnSize = "refuse",
    strict: options.Strict = False,
    cache: options.Cache = None,
    images: options.Images = (),
    tokens: options.Tokens = (),
    dataset: options.Datasets = None,
    index: options.Index = None,
    features: options.Features = None,
    data_root: options.DataRoot = None,
    encoder: options.Encoder = None,
    root: Annotated[
        options.Root, Here("what is sampled takes the run's; else $PIXCELL_ROOT, else the current folder")
    ] = None,
    batch_size: options.BatchSize = 16,
    workers: options.Workers = 1,
    precision: options.Precision = "fp32",
    compile: options.Compile = False,
    device: options.Device = "auto",
    gpu: options.Gpu = None,
    lora: options.Lora = (),
    controlnet: options.ControlNet = None,
    control_scale: Annotated[options.SeveralControlScales, Here("1")] = (1.0,),
    control_interval: options.ControlInterval = None,
    control_in_null: options.ControlInNull = False,
    mpp: options.CellMpp = NETWORK_MPP,
    control: options.Control = (),
    prior: options.Prior = None,
    class_: options.Classes = (),
    spacing: options.SeveralSpacings = (),
    autoguidance: Annotated[options.SeveralAutoguidances, Here(note=", or none")] = ("none",),
    block_cache: Annotated[options.SeveralBlockCaches, Here(note=", or none")] = ("none",),
    *,
    published: bool = False,
) -> None:
    """Sample a run at many settings, score each, and say which is best.

    Every combination of the values of --guidance, --steps, --solver, --spacing, --guidance-interval, --autoguidance,
    --block-cache, --control-scale and weights is a point. Conditions, noise and the real tissue are the same at all of them.
    OUT/sweep.csv and sweep.json are the table, with the seconds of an image, decoded and written, and the best point marked;
    OUT/<setting>.png shows the scores over each setting that has several values; OUT/points/ keeps samples and scores, so that the same
    command goes on where it was stopped, and one with more values computes those alone.

    Examples:
      pixcell sweep --workdir output/256 --guidance 1 1.5 2 3 4 --count 5000 --out sweep
      pixcell sweep --workdir output/256 --guidance 1.5 2 --guidance-interval all 0.3:5 --steps 10 20 50 --out sweep
      pixcell sweep --workdir output/256 --ema-lengths 0.05 0.1 0.15 --checkpoint checkpoints/last_ema.ckpt
    """
    count = count or len(images) or COUNT
    indexed = dict(data_root=data_root, index=index, features=features, dataset=dataset)
    refuse_unused_conditions(sweep, images, tokens, {"encoder": encoder}, indexed, published, prior)
    if control and real is None:
        raise InputError(
            "--control: samples of other layouts have no tissue to score against; name real images with --real"
        )
    for name, given in (("--tokens have", tokens), ("--prior has", prior)):
        if given and real is None:
            raise InputError(f"{name} no tissue to score against; name a folder of real images with --real")
    if real is not None and not real.is_dir():
        raise InputError(f"--real {real}: no such folder")
    if QUANTITIES[by].metric == "prdc" and count <= PRDC_NEIGHBOURS:
        raise InputError(f"--by {by} needs more than {PRDC_NEIGHBOURS} images")

    import torch

    from diffusion.encoders.embedder_files import check_encoders
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.measure import CellOptions, ScoringOptions
    from diffusion.evaluation.sweep import (
        PointScorer,
        check_conditions,
        make_grid,
        read_points,
        read_seconds,
        write_sweep,
    )
    from diffusion.generation.output_folder import OutputFolder
    from diffusion.generation.sample_patches import sample_patches
    from diffusion.generation.session import Session, open_session, split_scale
    from diffusion.generation.solver import Solver
    from diffusion.generation.sources import ConditionSource, find_origin, training_data_notes
    from diffusion.spacing import UNIFORM
    from diffusion.training.checkpoints.checkpoint import save_file
    from diffusion.training.checkpoints.posthoc_ema import find_averages, mix_weights
    from diffusion.utils.hardware import prepare_device
    from diffusion.utils.launch import start_processes
    from diffusion.utils.text import default_root
    from diffusion.workdir import add_loras, default_work_dir, find_weak, open_run

    place = prepare_device(device)
    state = start_processes(place)
    folder = workdir or default_work_dir()
    home = root or default_root()
    check_encoders(encoders, home)
    named = list(checkpoint) or ([] if ema_lengths else [Path(LAST_WEIGHTS)])
    averages = find_averages(folder, ema_lengths, out / "weights")
    files = {path.stem: (folder / path).resolve() for path in named} | {path.stem: path.resolve() for path in averages}
    if len(files) < len(named) + len(ema_lengths):
        raise InputError("--checkpoint or --ema-lengths: two have one name, and so would their points")
    opened = open_run(folder, named[0] if named else LAST_WEIGHTS, torch.device("cpu"), weights == "ema")
    add_loras(opened, [split_scale(text) for text in lora])  # which may make it a student
    student = opened.student
    points = make_grid(
        {
            "weights": list(files),
            "solver": solver or ([student.solver] if student else [DEFAULT_SOLVER]),
            "steps": steps or (student.steps if student else [DEFAULT_STEPS]),
            "guidance": guidance or [student.guidance if student else 2.0],
            "interval": guidance_interval or [student.guidance_interval if student else None],
            "spacing": spacing or [student.spacing if student else UNIFORM],
            "autoguidance": autoguidance,
            "block_cache": block_cache,
            "control_scale": control_scale,
        }
    )
    # all that can be refused, before hours of sampling
    controlled = (control_interval, control_in_null)
    solvers = {
        point: Solver(
            point.steps,
            point.guidance,
            point.solver,
            point.interval,
            precision,
            point.control_scale,
            *controlled,
            spacing=point.spacing,
            block_cache=point.block_cache,
        )
        for point in points
    }
    for each in solvers.values():
        each.for_run(opened)
    if student is not None:
        if student.guidance_interval and None in guidance_interval:
            low, high = student.guidance_interval
            raise InputError(
                f"--guidance-interval all: the network is a student with guidance from {low:g} to {high:g}; leave it out"
            )
        student.check_autoguidance(next((name for name in autoguidance if name != "none"), None))
    source = ConditionSource(
        images, tokens, data_root, index, features, dataset, control=control, prior=prior, classes=class_
    )
    if state.is_main_process:
        for path, mix in averages.items():
            if not path.is_file():
                save_file(mix_weights(mix), path)
    state.wait_for_everyone()

    def open_point(point: Point) -> Session:
        return open_session(
            folder,
            files[point.weights],
            solvers[point],
            seed=seed,
            averaged=weights == "ema",
            compiled=compile,
            root=root,
            vae=vae,
            encoder=encoder,
            device=device,
            gpu_id=gpu,
            loras=lora,
            controlnet=controlnet,
            autoguidance=None if point.autoguidance == "none" else Path(point.autoguidance),
        )

    def sample(point: Point, samples: Path, tissue: Path, with_real: bool) -> tuple[int, float | None]:
        output = OutputFolder(samples, "png", tissue=tissue)
        sampled = sample_patches(
            open_point(point),
            source,
            output,
            SIZES,
            count,
            count,
            batch_size,
            with_real=with_real,
            needs_real=with_real,
        )
        return sampled.size, sampled.seconds_per_image

    first = open_point(points[0])
    if by.startswith("mask_") and first.run.controlnet is None:
        raise InputError(f"--by {by}: the run has no ControlNet, so that samples have no masks")
    steering = {
        name: value for name, value in first.steering.items() if name not in ("control_scale", "autoguidance")
    }  # points have their own
    if state.is_main_process:
        older = {
            "images": list(images) or None,
            "tokens": list(tokens) or None,
            "data_root": data_root,
            "patch_names_file": index,
            "features_dir": features,
            "subset_keys": dataset,
        }
        content = find_origin(first, source).content
        check_conditions(out, {"n_images": count, "seed": seed}, content, older)
    state.wait_for_everyone()
    for note in training_data_notes(source):
        state.print(f"note: {note}")
    scorer = PointScorer(
        out,
        count,
        [PatchEmbedder.load(name, state.device or place, root=home) for name in encoders],
        state,
        ScoringOptions(COMPARED_METRICS, seed, bootstrap, batch_size or 32, workers or 0, strict, CellOptions(mpp)),
        on_size,
        real or out / REAL_DIR,
        tissue_is_given=real is not None,
        cache=cache or out / "features",
        weights=weights,
        precision=precision,
        compiled=compile,
        steering=steering,
        guides={name: find_weak(folder, name) for name in autoguidance if name != "none"},
    )
    for i, point in enumerate(points):
        state.print(f"point {i + 1} of {len(points)}: {point.name}")
        scorer.score(point, files[point.weights], sample)
    if state.is_main_process:
        scored = read_points(out / "points", scorer.settings)  # those of commands before, too
        seconds = read_seconds(out / "points")
        print_summary(scored, write_sweep(out, scored, by, scorer.settings, seconds), by)
        print(f"written: {out / 'sweep.csv'}")
    state.wait_for_everyone()


def print_summary(scored: ScoredPoints, best: Point, by: str) -> None:
    """Print every point's score, how far its Frechet distance is above that of the best point, and the notes."""
    from diffusion.evaluation.sweep import difference_to_best, scoring_encoder
    from diffusion.utils.text import format_number

    encoder = scoring_encoder(scored, by)
    differences = difference_to_best(scored, best, encoder) if by == "fd" else {}
    for point, record in scored.items():
        value = record[encoder]["values"].get(by)
        line = f"{point.name}: {by} {format_number(value['value'])}" if value else f"{point.name}: no {by}"
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
        print(f"best by {QUANTITIES[by].title} ({encoder}): {best.name}")
