"""Scoring of sets of images, or of files of features, by one encoder after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.evaluation.metrics.cell_scores import score_cells
from diffusion.evaluation.metrics.quantities import COMPARED_METRICS
from diffusion.evaluation.metrics.scores import REPLICATES, Scores, score
from diffusion.evaluation.metrics.stain_scores import score_stain
from diffusion.evaluation.sets.cells import (
    CELLS,
    CellMeasurement,
    CellTable,
    NucleiSource,
    plan_measurement,
)
from diffusion.evaluation.sets.embedding import Timing, embed_set
from diffusion.evaluation.sets.feature_files import FEATURE_SUFFIXES, read_feature_file
from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.image_set import LOSSY, ImageSet
from diffusion.evaluation.sets.measuring import measure_set
from diffusion.evaluation.sets.objects import find_all_objects
from diffusion.evaluation.sets.stain import STAIN, StainMeasurement, StainTable, plan_stain_measurement
from diffusion.formats import CONTROL_DIR, METRICS, NETWORK_MPP
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import abbreviate

if TYPE_CHECKING:
    from accelerate import PartialState

REAL, SYNTHETIC, UNTRAINED, TRAINING = ("real", "synthetic", "untrained", "training")


@dataclass(frozen=True)
class CellOptions:
    """How nuclei are found, and what they are compared with.

    mpp: microns per pixel of the images. real_nuclei, synthetic_nuclei: folders of label images or outlines; None: they are found by
    their stain. masks: folder of those that samples were made for.
    """

    mpp: float = NETWORK_MPP
    real_nuclei: Path | None = None
    synthetic_nuclei: Path | None = None
    masks: Path | None = None

    def described(self) -> dict[str, str]:
        """Return the options for the table of a report."""
        nuclei = "found by their stain" if self.real_nuclei is None else f"{self.real_nuclei}, {self.synthetic_nuclei}"
        masks = {} if self.masks is None else {"masks": str(self.masks)}
        return {"nuclei": nuclei, "microns per pixel": f"{self.mpp:g}", **masks}


@dataclass(frozen=True)
class StainOptions:
    """How a stain is scored, beside the options of cells, which say how nuclei are found.

    marker: by whose thresholds images are called positive; None: they are not called. registered: whether pairs show the same
    section, pixel for pixel.
    """

    marker: str | None = None
    registered: bool = False

    def described(self) -> dict[str, str]:
        """Return the options for the table of a report."""
        marker = {} if self.marker is None else {"marker": self.marker}
        return {**marker, "pairs": "registered" if self.registered else "not registered"}


@dataclass(frozen=True)
class ScoringOptions:
    """How sets are scored; the names are those of the command lines."""

    metrics: tuple[str, ...] = METRICS
    seed: int = 0
    replicates: int = REPLICATES
    batch_size: int = 32
    workers: int = 0
    strict: bool = False
    cells: CellOptions = field(default_factory=CellOptions)
    stain: StainOptions = field(default_factory=StainOptions)


@dataclass
class EncoderScores:
    """The scores by one encoder, those of an untrained network to compare with, and the features that they were taken from.

    weights: fingerprint of the encoder's weights; empty where features were read from files.
    """

    scores: Scores
    features: dict[str, Features]
    untrained: Scores | None = None
    notes: list[str] = field(default_factory=list)
    weights: str = ""


Source = ImageSet | Features


def open_sources(places: Mapping[str, Path | None], fit: str) -> dict[str, Source]:
    """Open the places of each kind of set: folders of images, or files of features.

    Raises MissingError, or InputError when some are files and others folders.
    """
    named = {kind: place for kind, place in places.items() if place is not None}
    files = [place for place in named.values() if place.suffix in FEATURE_SUFFIXES]
    if files and len(files) < len(named):
        folder = next(place for place in named.values() if place not in files)
        raise InputError(f"{files[0]} holds features and {folder} images; give features of all, or images of all")
    if files:
        return _unpair_numbered_rows({kind: read_feature_file(place) for kind, place in named.items()})
    return {kind: ImageSet.open(place, fit) for kind, place in named.items()}


def _unpair_numbered_rows(sources: dict[str, Features]) -> dict[str, Source]:
    """Rename real rows that only have numbers where there are not as many synthetic ones: their numbers pair nothing."""
    real, synthetic = sources[REAL], sources[SYNTHETIC]
    if len(real) != len(synthetic) and real.rows[-1].name == str(len(real) - 1):
        real = replace(real, rows=[Row(f"real {row.name}") for row in real.rows])
    return {**sources, REAL: real}


def score_sets(
    sources: Mapping[str, Source],
    embedder: PatchEmbedder | None,
    cache: Path,
    state: PartialState,
    options: ScoringOptions,
    timing: Timing,
) -> EncoderScores | None:
    """Embed all sets, by all processes together, and score them in the main process; return None in the others.

    embedder: may be None when the sources are features. Raises InputError for sets that cannot be scored.
    """
    features: dict[str, Features] = {}
    reading = (options.batch_size, options.workers, options.strict, timing)
    for kind, source in sources.items():
        if isinstance(source, Features):
            features[kind] = source
        else:
            assert embedder is not None, f"images of {source.folder} and no embedder"
            features[kind] = embed_set(source, embedder, cache, state, *reading)
    if not state.is_main_process:
        return None
    device = torch.device("cuda") if embedder is not None and embedder.device.type == "cuda" else torch.device("cpu")
    real = features[REAL]
    if options.strict:
        _check_paired(real, features[SYNTHETIC])
    settings = (options.seed, options.replicates, device)
    scores = score(real, features[SYNTHETIC], options.metrics, features.get(TRAINING), *settings)
    untrained = None
    if UNTRAINED in features:
        metrics = [metric for metric in options.metrics if metric in COMPARED_METRICS]
        untrained = score(real, features[UNTRAINED], metrics, None, *settings)
    weights = "" if embedder is None else embedder.fingerprint
    return EncoderScores(scores, features, untrained, describe_sets(sources, features), weights)


def choose_cells(
    sources: Mapping[str, Source], metrics: Sequence[str], given: CellOptions
) -> tuple[CellOptions | None, list[str]]:
    """Return how cells are scored, with the masks beside the samples where none are named, and notes; None where they are not."""
    samples = sources[SYNTHETIC]
    if CELLS not in metrics or not isinstance(samples, ImageSet):
        return None, []
    if samples.fit == "resize" and tuple(metrics) == METRICS:  # all that applies
        return None, ["Cells are not scored in images that are resized."]
    folder = samples.folder.absolute().parent / CONTROL_DIR
    if given.masks is not None or not folder.is_dir():
        return given, []
    try:
        find_all_objects(folder, samples.files)
    except MissingError as error:
        return given, [f"Samples are not compared with masks: {error}."]
    return replace(given, masks=folder), []


def plan_cells(sources: Mapping[str, Source], options: ScoringOptions) -> dict[str, CellMeasurement]:
    """Look for everything that measuring nuclei of sets needs, before anything is computed. Raises MissingError, InputError."""
    given, plans = options.cells, {}
    images = _image_sets(sources)
    if REAL not in images or SYNTHETIC not in images:
        raise InputError("cells are scored in images: give folders of them instead of files of features")
    for kind in (REAL, SYNTHETIC):
        folder = given.real_nuclei if kind == REAL else given.synthetic_nuclei
        masked = images[kind].files.keys() <= images[SYNTHETIC].files.keys()  # real: the tissue of the same masks
        plans[kind] = plan_measurement(
            images[kind], NucleiSource(given.mpp, folder), given.masks if masked else None, options.seed
        )
    if UNTRAINED in images and given.real_nuclei is None:
        plans[UNTRAINED] = plan_measurement(images[UNTRAINED], NucleiSource(given.mpp))
    return plans


def score_cell_sets(
    sources: Mapping[str, Source],
    plans: Mapping[str, CellMeasurement],
    cache: Path,
    state: PartialState,
    options: ScoringOptions,
) -> EncoderScores | None:
    """Measure nuclei and stains of sets as planned, by all processes together, and score them in the main one; None in the others.

    Raises InputError for sets that cannot be scored, and masks of another size than their images.
    """
    images = _image_sets(sources)
    features = _measure(images, plans, cache, state, options)
    if features is None:
        return None
    tables = {kind: CellTable.of(rows) for kind, rows in features.items()}
    scores = score_cells(tables[REAL], tables[SYNTHETIC], options.cells.mpp, options.seed)
    untrained = None
    if UNTRAINED in tables:
        untrained = score_cells(tables[REAL], tables[UNTRAINED], options.cells.mpp, options.seed)
    elif UNTRAINED in images:
        scores.notes.append("The untrained network's nuclei are not compared: those of the others were given.")
    return EncoderScores(scores, features, untrained, describe_sets(images, features))


def plan_stain(sources: Mapping[str, Source], options: ScoringOptions) -> dict[str, StainMeasurement]:
    """Look for everything that scoring a stain needs, before anything is computed. Raises MissingError, InputError."""
    given = options.cells
    images = _image_sets(sources)
    if REAL not in images or SYNTHETIC not in images:
        raise InputError(f"the metric {STAIN} is taken in images: give folders of them instead of files of features")
    pairs = (images[REAL], options.stain.registered, options.seed)
    return {
        REAL: plan_stain_measurement(images[REAL], given.mpp, given.real_nuclei),
        SYNTHETIC: plan_stain_measurement(images[SYNTHETIC], given.mpp, given.synthetic_nuclei, *pairs),
    }


def score_stain_sets(
    sources: Mapping[str, Source],
    plans: Mapping[str, StainMeasurement],
    cache: Path,
    state: PartialState,
    options: ScoringOptions,
) -> EncoderScores | None:
    """Measure the stain of both sets as planned, by all processes together, and score it in the main one; None in the others.

    Raises InputError for sets that cannot be scored, and pairs of two sizes.
    """
    images = _image_sets(sources)
    features = _measure(images, plans, cache, state, options)
    if features is None:
        return None
    tables = {kind: StainTable.of(rows) for kind, rows in features.items()}
    scores = score_stain(tables[REAL], tables[SYNTHETIC], options.stain.marker, options.seed)
    if UNTRAINED in images:
        scores.notes.append("The untrained network's stain is not compared.")
    return EncoderScores(scores, features, notes=describe_sets(images, features))


def _image_sets(sources: Mapping[str, Source]) -> dict[str, ImageSet]:
    return {kind: source for kind, source in sources.items() if isinstance(source, ImageSet)}


def _measure(
    images: Mapping[str, ImageSet],
    plans: Mapping[str, CellMeasurement] | Mapping[str, StainMeasurement],
    cache: Path,
    state: PartialState,
    options: ScoringOptions,
) -> dict[str, Features] | None:
    """Measure sets as planned, by all processes together; None in all but the main one. Raises InputError."""
    reading = (cache, state, options.workers, options.strict)
    features = {kind: measure_set(images[kind], plan, *reading) for kind, plan in plans.items()}
    if not state.is_main_process:
        return None
    if options.strict:
        _check_paired(features[REAL], features[SYNTHETIC])
    return features


def _check_paired(real: Features, synthetic: Features) -> None:
    """Raise InputError when an image of one set has no partner in the other."""
    unpaired = sorted({row.name for row in set(real.rows) ^ set(synthetic.rows)})
    if unpaired:
        raise InputError(
            f"{len(unpaired)} images without a partner, the first {unpaired[0]}: --strict wants as many real as synthetic "
            "ones, of the same names"
        )


def describe_sets(sources: Mapping[str, Source], features: Mapping[str, Features]) -> list[str]:
    """Return sentences on what a reader must know of the sets themselves."""
    notes = []
    compared = {kind: len(features[kind]) for kind in (REAL, SYNTHETIC, UNTRAINED) if kind in features}
    if len(set(compared.values())) > 1:
        numbers = ", ".join(f"{kind} {count}" for kind, count in compared.items())
        notes.append(f"Unequal numbers of images ({numbers}); a distance grows as images get fewer.")
    for kind, rows in features.items():
        if rows.bad:
            reasons = abbreviate([f"{name} {reason}" for name, reason in rows.bad.items()])
            notes.append(f"{count_phrase(len(rows.bad), kind)} left out: {reasons}.")
        for lossy in (name for name in LOSSY if name in rows.formats and kind != TRAINING):
            notes.append(
                f"{count_phrase(rows.formats[lossy], kind)} {lossy}: lossy compression alone moves the scores. Score PNG."
            )
        source = sources[kind]
        if isinstance(source, ImageSet) and source.fit == "windows" and len(rows) > len(source.files) - len(rows.bad):
            files = len(source.files) - len(rows.bad)
            notes.append(f"The {kind} images are {len(rows)} windows of 256 pixels, of {files} files.")
        elif isinstance(source, ImageSet) and source.fit == "resize":
            notes.append(f"Those {kind} images that are not of 256 pixels were resized.")
    return notes


def count_phrase(number: int, kind: str) -> str:
    """Return `1 real image is` or `3 real images are`."""
    return f"{number} {kind} {'image is' if number == 1 else 'images are'}"


def scores_by_encoder(measured: Sequence[EncoderScores]) -> dict[str, dict]:
    """Return the scores of each encoder for JSON."""
    found = {}
    for part in measured:
        found[part.scores.encoder] = {"weights": part.weights, **part.scores.to_dict()}
        if part.untrained is not None:
            found[part.scores.encoder]["untrained"] = part.untrained.to_dict()["values"]
    return found
