"""Where the conditions of samples come from, and what identifies them in the record of an output folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.components import check_dataset_tokens, check_tokens
from diffusion.data.datasets.pan_cancer import PanCancerData
from diffusion.formats import CONDITIONS_DIR
from diffusion.generation.conditions import (
    IndexConditions,
    RepeatedConditions,
    load_image_conditions,
    load_token_conditions,
    open_condition_dataset,
)
from diffusion.generation.controls import ControlledConditions, list_controls, load_controls
from diffusion.generation.priors import Prior, PriorConditions, check_classes, identify_prior, open_prior
from diffusion.generation.session import Session
from diffusion.utils.content import fingerprint_file
from diffusion.utils.errors import InputError, MissingError


@dataclass(frozen=True)
class ConditionSource:
    """Where conditions come from: image files, files of tokens, or else an index, by default that of the run.

    data_root, index, features, dataset: of another index than the run's, as the options call them. A text as dataset is one
    name. image_mpp: microns per pixel of the images, None: they are taken pixel for pixel. control: files of masks or images,
    and folders of them, which control, one an image. prior: a flow that draws embeddings; classes: those that it draws from.
    Raises InputError when several of them are given.
    """

    images: Sequence[Path] = ()
    tokens: Sequence[Path] = ()
    data_root: Path | None = None
    index: str | None = None
    features: str | None = None
    dataset: Sequence[str] | None = None
    image_mpp: float | None = None
    control: Sequence[Path] = ()
    prior: Path | None = None
    classes: Sequence[str] = ()

    def __post_init__(self):
        if isinstance(self.dataset, str):
            object.__setattr__(self, "dataset", (self.dataset,))  # is frozen
        given = [name for name in ("images", "tokens", "prior") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"--{' and --'.join(given)}: one of them conditions; give one")
        check_classes(self.prior, self.classes)
        if self.image_mpp is not None and not self.images:
            raise InputError("--image-mpp is the resolution of --images; give these, too")

    @property
    def files(self) -> Sequence[Path]:
        """Return the files that condition; none of an index."""
        return self.images or self.tokens


def training_data_notes(source: ConditionSource) -> list[str]:
    """Return sentences to print with scores when the conditions are those that the run was trained on."""
    if source.files or source.prior or source.data_root or source.index or source.dataset:
        return []
    return [
        "Conditions and real images are of the index that the run was trained on; name held-out ones with "
        "--index or --dataset."
    ]


SampleConditions = IndexConditions | RepeatedConditions | PriorConditions | ControlledConditions


class Origin(NamedTuple):
    """What identifies conditions by content, and where they are stored."""

    content: dict[str, Any]
    locations: dict[str, Any]


def identify_files(session: Session, paths: Sequence[Path], embedded: bool) -> dict[str, Any]:
    """Return what identifies conditions of files: the files' content and, of what is embedded now, the embedder.

    Raises MissingError.
    """
    for path in paths:
        if not path.is_file():
            problem = "is a folder: name the files in it" if path.is_dir() else "is not there"
            raise MissingError(f"no file {path} to condition on: it {problem}")
    content = {"conditions": [[path.name, fingerprint_file(path)] for path in paths]}
    return {**content, "encoder": [session.embedder.name, session.embedder.fingerprint]} if embedded else content


def open_index(session: Session, source: ConditionSource, with_control: bool = True) -> PanCancerData:
    """Open the run's data set, or the one that the source names, and check it against the network.

    with_control: whether to read the masks that the run was trained with; never where the source names others. Raises InputError.
    """
    config = session.run.config
    arguments = {**config.data_arguments, "root": source.data_root or session.root}
    arguments["patch_names_file"] = source.index or arguments["patch_names_file"]
    arguments["features_dir"] = source.features or arguments["features_dir"]
    if source.control or not with_control:
        arguments |= {"mask_prefix": None, "control_prefix": None, "control_dataset": None}
    dataset = open_condition_dataset(arguments, source.dataset)
    check_dataset_tokens(dataset, config.model_max_length, config.caption_channels)
    return dataset


def choose_source(session: Session, source: ConditionSource) -> ConditionSource:
    """Return a source, or where it names nothing, the embeddings that published weights have beside them, if there are any."""
    if any(value for name, value in vars(source).items() if name != "control"):
        return source
    stored = sorted((session.run.folder / CONDITIONS_DIR).glob("*.npy"))
    return dataclasses.replace(source, tokens=stored)


def choose_conditions(
    session: Session, source: ConditionSource, pixels: bool = True
) -> tuple[SampleConditions, Origin]:
    """Return the conditions of a source, and what identifies them. pixels: whether they carry the tissue that they are of.

    Raises MissingError, InputError for files that are no conditions of the session's network, or no controls.
    """
    files = list_controls(source.control)
    conditions, origin = _choose_tokens(session, source, pixels and not files)
    if not files:
        return conditions, origin
    controls = load_controls(files, session.run, session.codec)
    return ControlledConditions(conditions, controls), with_controls(origin, files)


def with_controls(origin: Origin, files: Sequence[Path]) -> Origin:
    """Add what identifies files that control, if there are any."""
    found = {"controls": [[path.name, fingerprint_file(path)] for path in files]} if files else {}
    return Origin({**origin.content, **found}, origin.locations)


def _choose_tokens(
    session: Session, source: ConditionSource, pixels: bool
) -> tuple[IndexConditions | RepeatedConditions | PriorConditions, Origin]:
    """Return the conditions of a source without the files that control."""
    if source.prior is not None:
        prior = open_source_prior(session, source.prior, source.classes)
        return PriorConditions(prior, session.seed), Origin(identify_prior(prior), {})
    if not source.files:
        dataset = open_index(session, source)
        return IndexConditions(dataset, session.seed, pixels, session.codec.scale), index_origin(dataset)
    config = session.run.config
    origin = files_origin(session, source)
    conditions = list(
        load_image_conditions(source.images, session.embedder, config.image_size, source.image_mpp)
        if source.images
        else load_token_conditions(source.tokens, config.model_max_length)
    )
    for condition in conditions:
        check_tokens(condition.condition.tokens[0], config.model_max_length, config.caption_channels, condition.name)
    if not pixels:
        conditions = [dataclasses.replace(condition, pixels=None) for condition in conditions]
    return RepeatedConditions(conditions), origin


def find_origin(session: Session, source: ConditionSource) -> Origin:
    """Return what identifies the conditions of a source, without reading them."""
    if source.prior is not None:
        origin = Origin(identify_prior(open_source_prior(session, source.prior, source.classes)), {})
    else:
        origin = files_origin(session, source) if source.files else index_origin(open_index(session, source))
    return with_controls(origin, list_controls(source.control))


def open_source_prior(session: Session, path: Path, classes: Sequence[str], of_windows: bool = False) -> Prior:
    """Load a prior of embeddings as the session's network takes them. Raises MissingError, InputError.

    of_windows: of a large picture, whose grid may be drawn in windows of another size than the network's.
    """
    config = session.run.config
    tokens = None if of_windows else config.model_max_length
    return open_prior(path, classes, tokens, config.caption_channels, session.device)


def files_origin(session: Session, source: ConditionSource) -> Origin:
    """Return what identifies the conditions of image files or files of tokens."""
    content = identify_files(session, source.files, embedded=bool(source.images))
    return Origin(content if source.image_mpp is None else {**content, "image_mpp": source.image_mpp}, {})


def index_origin(dataset: PanCancerData) -> Origin:
    """Return what identifies the conditions of an index."""
    places = {
        "index": str(dataset.index.path.resolve()),
        "keys": dataset.index.keys,
        "features": sorted({str(features.folder.resolve()) for features in dataset.features}),
        "ssl_prefix": dataset.ssl_prefix,
    }
    return Origin({"data": dataset.identity()}, places)
