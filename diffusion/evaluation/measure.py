"""Sets of images or files of features, scored by one encoder after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.evaluation.metrics.scores import REPLICATES, Scores, score
from diffusion.evaluation.sets.embedding import Timing, embed_set
from diffusion.evaluation.sets.feature_files import FEATURE_SUFFIXES, read_feature_file
from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.images import LOSSY, ImageSet
from diffusion.formats import METRICS
from diffusion.utils.errors import InputError
from diffusion.utils.text import abbreviate

if TYPE_CHECKING:
    from accelerate import PartialState

REAL, SYNTHETIC, UNTRAINED, TRAINING = ("real", "synthetic", "untrained", "training")
UNTRAINED_METRICS = ("fd", "kid", "prdc", "similarity")  # metrics of the untrained network's set, to compare with


@dataclass(frozen=True)
class ScoringOptions:
    """How sets are measured; configs and command lines say the same words."""

    metrics: tuple[str, ...] = METRICS
    seed: int = 0
    replicates: int = REPLICATES
    batch_size: int = 32
    workers: int = 0
    strict: bool = False


@dataclass
class EncoderScores:
    """One encoder's scores, the untrained network's beside them, and the features that they are of.

    weights: the encoder's, by their fingerprint; empty of features that were given.
    """

    scores: Scores
    features: dict[str, Features]
    untrained: Scores | None = None
    notes: list[str] = field(default_factory=list)
    weights: str = ""


Source = ImageSet | Features


def open_sources(places: Mapping[str, Path | None], fit: str) -> dict[str, Source]:
    """What is at some places, by kind: folders of images, or files of features.

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
    """Rows that have but numbers for names are pairs where there are as many real as synthetic ones, and else none."""
    real, synthetic = sources[REAL], sources[SYNTHETIC]
    if len(real) != len(synthetic) and real.rows[-1].name == str(len(real) - 1):
        sources[REAL] = replace(real, rows=[Row(f"real {row.name}") for row in real.rows])
    return sources


def score_sets(
    sources: Mapping[str, Source],
    embedder: PatchEmbedder | None,
    cache: Path,
    state: PartialState,
    options: ScoringOptions,
    timing: Timing,
) -> EncoderScores | None:
    """Embed all sets, processes together, and score them in the main one; None in the others.

    embedder: None when the sources are features. Raises InputError for sets that cannot be scored.
    """
    features = {
        kind: source
        if isinstance(source, Features)
        else embed_set(source, embedder, cache, state, options.batch_size, options.workers, options.strict, timing)
        for kind, source in sources.items()
    }
    if not state.is_main_process:
        return None
    device = torch.device("cuda") if embedder is not None and embedder.device.type == "cuda" else torch.device("cpu")
    real = features[REAL]
    if options.strict:
        _check_paired(real, features[SYNTHETIC])
    settings = dict(seed=options.seed, replicates=options.replicates, device=device)
    scores = score(real, features[SYNTHETIC], options.metrics, features.get(TRAINING), **settings)
    untrained = None
    if UNTRAINED in features:
        metrics = [metric for metric in options.metrics if metric in UNTRAINED_METRICS]
        untrained = score(real, features[UNTRAINED], metrics, **settings)
    weights = "" if embedder is None else embedder.fingerprint
    return EncoderScores(scores, features, untrained, describe_sets(sources, features), weights)


def _check_paired(real: Features, synthetic: Features) -> None:
    alone = sorted(set(real.rows) ^ set(synthetic.rows))
    if alone:
        raise InputError(
            f"{len(alone)} images without a partner, the first {alone[0].name}: --strict wants as many real as synthetic "
            "ones, of the same names"
        )


def describe_sets(sources: Mapping[str, Source], features: Mapping[str, Features]) -> list[str]:
    """What a reader must know of the sets themselves, in sentences."""
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
    """`1 real image is`, `3 real images are`."""
    return f"{number} {kind} {'image is' if number == 1 else 'images are'}"


def scores_by_encoder(measured: Sequence[EncoderScores]) -> dict[str, dict]:
    """Scores by encoder, as JSON has them."""
    found = {}
    for part in measured:
        found[part.scores.encoder] = {"weights": part.weights, **part.scores.record()}
        if part.untrained is not None:
            found[part.scores.encoder]["untrained"] = part.untrained.record()["values"]
    return found
