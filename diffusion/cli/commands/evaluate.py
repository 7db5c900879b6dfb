"""pixcell evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from diffusion.cli import options
from diffusion.cli.signature import Here, Option, checked, flag_name
from diffusion.cli.unused import refuse_unused_conditions
from diffusion.formats import (
    LAST_WEIGHTS,
    MEASURED_METRICS,
    METRICS,
    NETWORK_MPP,
    REAL_DIR,
    SYNTHETIC_DIR,
    WINDOW,
)
from diffusion.utils.errors import InputError, MissingError

if TYPE_CHECKING:
    from diffusion.evaluation.measure import EncoderScores
    from diffusion.evaluation.sets.embedding import Timing

SIZES = (256, 512, 1024)
COUNT = 5000  # of an index: with few, a distance says more of their number than of the images
BATCH_SIZE = 32


@checked
def evaluate(
    real: options.Real = None,
    syn: Annotated[
        Path | None,
        Option("the same of synthetic ones; samples.json beside a folder is shown as settings"),
    ] = None,
    workdir: Annotated[options.Workdir, Here("none is sampled", note=options.NANO_NOTE)] = None,
    out: options.OutFolder = Path("report"),
    count: Annotated[options.Count, Here(f"{COUNT}; of --images one each")] = None,
    seed: options.Seed = 0,
    encoders: options.Encoders = ("mobilenetv2",),
    metrics: options.Metrics = METRICS,
    untrained: Annotated[
        Path | None, Option("the same of an untrained network, to compare with", group=options.SCORING)
    ] = None,
    train: Annotated[
        Path | None,
        Option("the same of training images, among which each sample's nearest is looked up", group=options.SCORING),
    ] = None,
    losses: Annotated[
        Path | None,
        Option("work dir of the training run, for its losses [--workdir]", metavar="WORKDIR", group=options.SCORING),
    ] = None,
    note: Annotated[str, Option("a line at the head of the page", metavar="TEXT", group=options.SCORING)] = "",
    bootstrap: options.Bootstrap = 50,
    on_size: options.OnSize = "refuse",
    strict: options.Strict = False,
    cache: options.Cache = None,
    checkpoint: Annotated[options.Checkpoint | None, Here(LAST_WEIGHTS)] = None,
    weights: Annotated[options.Weights | None, Here("ema")] = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    solver: options.Solver = None,
    vae: options.Vae = None,
    format: Annotated[options.ImageFormat | None, Here("png")] = None,
    images: options.Images = (),
    dataset: options.Datasets = None,
    index: options.Index = None,
    features: options.Features = None,
    data_root: options.DataRoot = None,
    encoder: options.Encoder = None,
    root: Annotated[
        options.Root, Here("what is sampled takes the run's; else $PIXCELL_ROOT, else the current folder")
    ] = None,
    batch_size: options.BatchSize = BATCH_SIZE,
    workers: options.Workers = 1,
    precision: Annotated[options.Precision | None, Here("fp32")] = None,
    compile: options.Compile = False,
    device: options.Device = "auto",
    gpu: options.Gpu = None,
    mpp: options.CellMpp = NETWORK_MPP,
    masks: options.SampleMasks = None,
    real_nuclei: options.RealNuclei = None,
    syn_nuclei: options.SyntheticNuclei = None,
    marker: options.Marker = None,
    registered: options.Registered = False,
    *,
    published: bool = False,
) -> None:
    """Score synthetic images against real ones, and write a page that opens in any browser.

    Give two folders of images (--real, --syn; a synthetic image belongs to the real one of the same path below its folder,
    suffix aside), two files of features (.npy, .npz), or a run to sample from (--workdir). OUT/index.html is the page,
    OUT/scores.json its numbers, OUT/pairs.csv the similarity of every pair, OUT/cells.csv the nuclei of every image, OUT/stain.csv
    its positive nuclei; OUT/pairs.png, masks.png and stain.png are pictures of some of them. Options of sampling and of
    conditions are for --workdir alone.

    Examples:
      pixcell evaluate --real samples_256/real --syn samples_256/syn --encoders mobilenetv2 uni2
      pixcell evaluate --real real --syn syn --encoders timm/resnet50.a1_in1k=model.safetensors --train training/
      pixcell evaluate --workdir output/256 --count 5000 --guidance 2 --out report
      pixcell evaluate --real ihc_er --syn virtual_er --metrics stain fd --marker er
      accelerate launch -m pixcell evaluate --real features_real.npy --syn features_syn.npy
    """
    check_sets(real, syn, workdir)
    if workdir is None:
        refuse_sampling_options(
            checkpoint=checkpoint, weights=weights, steps=steps, guidance=guidance, guidance_interval=guidance_interval,
            solver=solver, vae=vae, format=format, images=images, dataset=dataset, index=index, features=features,
            data_root=data_root, encoder=encoder, count=count, precision=precision, compile=compile or None, gpu=gpu,
        )  # fmt: skip
    else:
        indexed = dict(data_root=data_root, index=index, features=features, dataset=dataset)
        refuse_unused_conditions(evaluate, images, (), {"encoder": encoder}, indexed, published)
    if list(metrics) == ["neighbours"] and train is None:
        raise InputError("--metrics neighbours: among which images? Name those of training with --train")

    from diffusion.encoders.embedder_files import check_encoders
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.evaluation.measure import (
        REAL,
        SYNTHETIC,
        TRAINING,
        UNTRAINED,
        CellOptions,
        ScoringOptions,
        StainOptions,
        choose_cells,
        open_sources,
        plan_cells,
        plan_stain,
        score_cell_sets,
        score_sets,
        score_stain_sets,
    )
    from diffusion.evaluation.reports.report import ReportInfo, read_losses, write_report
    from diffusion.evaluation.sets.embedding import Timing
    from diffusion.evaluation.sets.provenance import read_sampling_settings
    from diffusion.utils.hardware import prepare_device
    from diffusion.utils.launch import start_processes
    from diffusion.utils.text import default_root

    # All that can be refused is read before a network runs.
    home = root or default_root()
    if losses is None and workdir is not None and (workdir / "tensorboard").is_dir():
        losses = workdir
    curves = None if losses is None else read_losses(losses)
    has_images = real is None or real.is_dir()
    check_cells(metrics, has_images, real_nuclei, syn_nuclei, masks, mpp)
    check_stain(metrics, has_images, marker, registered)
    stained = "stain" in metrics
    encoded = not set(metrics) <= set(MEASURED_METRICS)
    if has_images and encoded:
        check_encoders(encoders, home)

    origin: list[str] = []
    if workdir is not None:
        from diffusion.generation.output_folder import OutputFolder
        from diffusion.generation.sample_patches import sample_patches
        from diffusion.generation.session import open_session
        from diffusion.generation.solver import Solver
        from diffusion.generation.sources import ConditionSource, training_data_notes

        source = ConditionSource(images, (), data_root, index, features, dataset)
        session = open_session(
            workdir,
            checkpoint or Path(LAST_WEIGHTS),
            Solver(
                steps,
                guidance,
                solver,
                guidance_interval,
                precision or "fp32",
            ),
            seed=seed,
            averaged=weights != "raw",
            compiled=compile,
            root=root,
            vae=vae,
            encoder=encoder,
            device=device,
            gpu_id=gpu,
        )
        samples = OutputFolder(out / "samples", format or "png")
        size = sample_patches(session, source, samples, SIZES, count, COUNT, batch_size, needs_real=True).size
        real, syn = samples.path / REAL_DIR, samples.path / SYNTHETIC_DIR
        origin = training_data_notes(source)
        if size > WINDOW and on_size == "refuse":
            on_size = "windows"
    assert real is not None and syn is not None, "checked above"
    places = {REAL: real, SYNTHETIC: syn, UNTRAINED: untrained, TRAINING: train}
    sources = open_sources(places, on_size)
    settings = read_sampling_settings(syn) if syn.is_dir() else {}
    place = prepare_device(device)
    state = start_processes(place)
    nuclei, stain = CellOptions(mpp, real_nuclei, syn_nuclei, masks), StainOptions(marker, registered)
    cells, told = choose_cells(sources, metrics, nuclei)
    origin += told
    reading = (batch_size or BATCH_SIZE, workers or 0, strict)
    scoring = ScoringOptions(tuple(metrics), seed, bootstrap, *reading, cells or nuclei, stain)
    plans = plan_cells(sources, scoring) if cells else {}
    stain_plans = plan_stain(sources, scoring) if stained else {}
    timing, measured = Timing(), []
    kept = cache or out / "features"
    for name in (encoders if has_images else [None]) if encoded else []:
        embedder = PatchEmbedder.load(name, state.device or place, root=home) if name else None
        measured.append(score_sets(sources, embedder, kept, state, scoring, timing))
    if cells:
        measured.append(score_cell_sets(sources, plans, kept, state, scoring))
    if stained:
        measured.append(score_stain_sets(sources, stain_plans, kept, state, scoring))
    if state.is_main_process:
        how = {kind: str(place) for kind, place in places.items() if place is not None}
        how |= {"images of other sizes": on_size, "metrics": " ".join(metrics), "seed": str(seed)}
        how |= {"replicates of intervals": str(bootstrap)} | (scoring.cells.described() if cells or stained else {})
        how |= stain.described() if stained else {}
        about = ReportInfo(note, seed, how, settings, curves, timing, origin, cells, mpp if stained else None)
        notes = write_report(out, measured, sources, about)
        print_summary(measured, notes, timing)
        print(f"written: {out / 'index.html'}")
    state.wait_for_everyone()


def check_sets(real: Path | None, syn: Path | None, workdir: Path | None) -> None:
    """Raise InputError unless there are two sets to compare, or a run to sample, and not both."""
    if workdir is not None and (real or syn):
        raise InputError("--workdir and --real or --syn: either a run is sampled, or what is there is scored")
    if workdir is None and not (real and syn):
        missing = "--real and --syn, or --workdir" if not (real or syn) else "--syn" if real else "--real"
        raise InputError(f"{missing}: missing; expected two sets to compare, or a run to sample")


def check_cells(
    metrics: Sequence[str],
    has_images: bool,
    real_nuclei: Path | None,
    syn_nuclei: Path | None,
    masks: Path | None,
    mpp: float,
) -> None:
    """Raise InputError for nuclei of one set alone, and options of nuclei that are not scored, MissingError for no folder."""
    if (real_nuclei is None) != (syn_nuclei is None):
        raise InputError(
            "--real-nuclei and --syn-nuclei: expected both, since two ways of finding nuclei do not compare"
        )
    folders = {"masks": masks, "real-nuclei": real_nuclei, "syn-nuclei": syn_nuclei}
    given = [name for name, folder in folders.items() if folder is not None] + ["mpp"] * (mpp != NETWORK_MPP)
    for name in given:
        takers = ("cells",) if name == "masks" else MEASURED_METRICS
        if not set(takers) & set(metrics):
            raise InputError(f"--{name} is of the metric {' or '.join(takers)}, which is not among --metrics")
    if not has_images and (given or ("cells" in metrics and tuple(metrics) != METRICS)):
        raise InputError("cells are scored in images: give folders of them instead of files of features")
    for name, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise MissingError(f"--{name} {folder}: no such folder")


def check_stain(metrics: Sequence[str], has_images: bool, marker: str | None, registered: bool) -> None:
    """Raise InputError for options of a stain that is not scored, and a stain without images."""
    if "stain" in metrics and not has_images:
        raise InputError("the metric stain is taken in images: give folders of them instead of files of features")
    given = ["marker"] * (marker is not None) + ["registered"] * registered
    if given and "stain" not in metrics:
        raise InputError(f"--{given[0]} is of the metric stain, which is not among --metrics")


def refuse_sampling_options(**options: Any) -> None:
    """Raise InputError for an option of sampling where nothing is sampled: it is a mistake, such as --encoder for --encoders.

    options: by parameter; those that are None or empty were not given.
    """
    for name, value in options.items():
        if value is not None and value != () and value != []:
            hint = "; the encoder of scores is named with --encoders" if name == "encoder" else ""
            raise InputError(f"{flag_name(name)} is of sampling, and nothing is sampled with --real and --syn{hint}")


def print_summary(measured: Sequence[EncoderScores], notes: Sequence[str], timing: Timing) -> None:
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
