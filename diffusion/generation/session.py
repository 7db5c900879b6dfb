"""A run opened for sampling, and what its samples are conditioned on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from tqdm import tqdm

from diffusion.components import check_dataset_tokens, check_tokens, load_codec, load_embedder
from diffusion.data.datasets.pan_cancer import PanCancerData
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec
from diffusion.formats import LAST_WEIGHTS
from diffusion.generation.conditions import (
    IndexConditions,
    RepeatedConditions,
    load_image_conditions,
    load_token_conditions,
    open_condition_dataset,
)
from diffusion.generation.solver import Solver
from diffusion.utils.content import fingerprint_file
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.hardware import prepare_device, suggest_batch_size
from diffusion.utils.launch import start_processes
from diffusion.workdir import Run, default_work_dir, open_run


@dataclass(frozen=True)
class Session:
    """A run opened for sampling on this process's device, with its codec, and how it is sampled.

    encoder: name or path of the embedder of images and slides; None: the one that the run's features came from.
    compiled: whether the network is; averaged: whether it has the averaged weights of a checkpoint that holds both.
    """

    state: PartialState
    run: Run
    codec: LatentCodec
    solver: Solver
    seed: int
    root: Path
    encoder: str | None = None
    compiled: bool = False
    averaged: bool = True

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.run.device

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all images of a folder have in common, independent of where weights and data are stored."""
        solver = self.solver
        return {
            "seed": self.seed,
            "sampling_steps": solver.steps,
            "guidance_strength": solver.guidance,
            "guidance_interval": solver.guidance_interval,
            "sampling_algo": solver.algorithm,
            "precision": solver.precision,
            **({"compiled": True} if self.compiled else {}),  # which rounds otherwise
            **({} if self.averaged else {"averaged": False}),
            "weights": self.run.fingerprint,
            "vae_weights": self.codec.fingerprint,
        }

    @property
    def locations(self) -> dict[str, Any]:
        """Where codec and weights are stored: for readers, and to recognise folders written by older versions."""
        checkpoint = self.run.checkpoint
        time = checkpoint.stat().st_mtime_ns
        return {"vae": self.codec.name, "checkpoint": str(checkpoint.resolve()), "checkpoint_time": time}

    def image_metadata(self, number: int) -> dict[str, Any]:
        """Return the metadata of an image's file: names of run and weights, and no paths of this machine."""
        names = {"run": self.run.folder.resolve().name, "checkpoint": self.run.checkpoint.name}
        return {**self.settings, **names, "number": number, "vae": Path(self.codec.name).name}

    def print_batch_advice(self, batch: int) -> None:
        """Print, in the main process, a larger batch that would fit, after one of `batch`."""
        model = self.run.model
        copies = 0 if self.solver.precision == "fp32" else 2 * sum(each.numel() for each in model.parameters())
        advice = suggest_batch_size(batch, self.device, copies)
        if advice and self.state.is_main_process:
            tqdm.write(advice)

    @cached_property
    def embedder(self) -> PatchEmbedder:
        """The embedder of images and slides. Raises MissingError, InputError."""
        return load_embedder(self.run.config, self.device, self.root, self.encoder)

    def identify_files(self, paths: Sequence[Path], embedded: bool) -> dict[str, Any]:
        """Return what identifies conditions of files: the files' content and, of what is embedded now, the embedder.

        Raises MissingError.
        """
        for path in paths:
            if not path.is_file():
                problem = "is a folder: name the files in it" if path.is_dir() else "is not there"
                raise MissingError(f"no file {path} to condition on: it {problem}")
        content = {"conditions": [[path.name, fingerprint_file(path)] for path in paths]}
        return {**content, "encoder": [self.embedder.name, self.embedder.fingerprint]} if embedded else content


def open_session(
    workdir: Path | None = None,
    checkpoint: Path = Path(LAST_WEIGHTS),
    solver: Solver | None = None,
    *,
    seed: int = 0,
    averaged: bool = True,
    compiled: bool = False,
    root: Path | None = None,
    vae: str | None = None,
    encoder: str | None = None,
    device: str = "auto",
    gpu_id: int | None = None,
) -> Session:
    """Open a run for sampling.

    workdir: of a training run, or released weights; None: the default one. checkpoint: relative to it. averaged: which
    weights of a checkpoint that holds both. compiled: compile the network. root: of data and codec, None: the run's.
    vae, encoder: other ones than the run's. device: as the option --device; gpu_id: which GPU of several.
    Raises MissingError, InputError for a run, weights, codec or device that cannot be opened.
    """
    solver = solver or Solver()
    place = prepare_device(device)
    state = start_processes(place)
    place = torch.device(state.device or place)
    if gpu_id is not None and place.type == "cuda" and state.num_processes == 1:
        count = torch.cuda.device_count()
        if gpu_id >= count:
            raise InputError(f"--gpu_id {gpu_id}: this machine has {count} GPUs, counted from 0")
        place = torch.device("cuda", gpu_id)
        torch.cuda.set_device(place)
    if solver.precision == "fp16" and place.type == "cpu":
        raise InputError("--precision fp16 needs a GPU; on a CPU take fp32, or bf16 where the processor has it")
    run = open_run(workdir or default_work_dir(), checkpoint, place, ema=averaged)
    if compiled:
        run.model.compile_blocks()
    config = run.config
    if vae:  # its own scale goes with it
        config = dataclasses.replace(config, vae_pretrained=vae, scale_factor=None, shift_factor=None)
    root = root or config.data_root
    return Session(state, run, load_codec(config, place, root), solver, seed, root, encoder, compiled, averaged)


@dataclass(frozen=True)
class ConditionSource:
    """Where conditions come from: image files, files of tokens, or else an index, by default that of the run.

    data_root, patch_names_file, features_dir, subset_keys: of another index than the run's, as the options call them.
    Raises InputError when both images and tokens are given.
    """

    images: Sequence[Path] = ()
    tokens: Sequence[Path] = ()
    data_root: Path | None = None
    patch_names_file: str | None = None
    features_dir: str | None = None
    subset_keys: Sequence[str] | None = None

    def __post_init__(self):
        if self.images and self.tokens:
            raise InputError("--images and --tokens: one of them conditions; give one")

    @property
    def files(self) -> Sequence[Path]:
        """The files that condition; none of an index."""
        return self.images or self.tokens


class Origin(NamedTuple):
    """What identifies conditions by content, and where they are stored."""

    content: dict[str, Any]
    locations: dict[str, Any]


def open_index(session: Session, source: ConditionSource) -> PanCancerData:
    """Open the run's data set, or the one that the source names, and check it against the network. Raises InputError."""
    config = session.run.config
    arguments = {**config.data_arguments, "root": source.data_root or session.root}
    for name in ("patch_names_file", "features_dir"):
        arguments[name] = getattr(source, name) or arguments[name]
    dataset = open_condition_dataset(arguments, None if source.subset_keys is None else list(source.subset_keys))
    check_dataset_tokens(dataset, config.model_max_length, config.caption_channels)
    return dataset


def choose_conditions(
    session: Session, source: ConditionSource, pixels: bool = True
) -> tuple[IndexConditions | RepeatedConditions, Origin]:
    """Return the conditions of a source, and what identifies them. pixels: whether they carry the tissue that they are of.

    Raises MissingError, InputError for files that are no conditions of the session's network.
    """
    if not source.files:
        dataset = open_index(session, source)
        return IndexConditions(dataset, session.seed, pixels), index_origin(dataset)
    config = session.run.config
    origin = files_origin(session, source)
    conditions = list(
        load_image_conditions(source.images, session.embedder, config.image_size)
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
    return files_origin(session, source) if source.files else index_origin(open_index(session, source))


def files_origin(session: Session, source: ConditionSource) -> Origin:
    """Return what identifies the conditions of image files or files of tokens."""
    return Origin(session.identify_files(source.files, embedded=bool(source.images)), {})


def index_origin(dataset: PanCancerData) -> Origin:
    """Return what identifies the conditions of an index."""
    places = {
        "index": str(dataset.index.path.resolve()),
        "keys": dataset.index.keys,
        "features": sorted({str(features.folder.resolve()) for features in dataset.features}),
        "ssl_prefix": dataset.ssl_prefix,
    }
    return Origin({"data": dataset.identity()}, places)
