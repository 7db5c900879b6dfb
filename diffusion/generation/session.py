"""What the tools that sample share once their options are parsed: the run they open, and the folders they fill."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from tqdm import tqdm

from diffusion.data.datasets.pan_cancer import PanCancerData
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec
from diffusion.formats import SYNTHETIC_DIR
from diffusion.generation.conditions import Condition, IndexConditions, from_images, from_token_files, open_conditions
from diffusion.generation.generators import ImageMaker
from diffusion.generation.output_folder import Folder
from diffusion.generation.solver import Solver
from diffusion.utils.content import fingerprint_file
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.hardware import describe_device, prepare_device, suggest_batch_size
from diffusion.utils.launch import start_processes
from diffusion.workdir import Run, check_shape, check_tokens, default_work_dir, load_codec, load_embedder, open_run

LOOKED_AT = 16  # conditions of which one must have its tissue, where that is needed


@dataclass(frozen=True)
class Session:
    """A run opened for sampling as the command line says, on this process's device."""

    args: argparse.Namespace
    state: PartialState
    run: Run
    codec: LatentCodec
    solver: Solver

    @property
    def root(self) -> Path:
        return self.args.root or self.run.config.data_root

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What every picture of a folder has in common, wherever weights and data lie."""
        solver = self.solver
        return {
            "seed": self.args.seed,
            "sampling_steps": solver.steps,
            "guidance_strength": solver.guidance,
            "guidance_interval": solver.guidance_interval,
            "sampling_algo": solver.algorithm,
            "precision": solver.precision,
            **({"compiled": True} if self.args.compile else {}),  # which rounds otherwise
            **({"averaged": False} if self.args.weights == "raw" else {}),
            "weights": self.run.fingerprint,
            "vae_weights": self.codec.fingerprint,
        }

    @property
    def places(self) -> dict[str, Any]:
        """Where codec and weights are now: for readers of the settings, and to know the folders of older versions by."""
        checkpoint = self.run.checkpoint
        time = checkpoint.stat().st_mtime_ns
        return {"vae": self.codec.name, "checkpoint": str(checkpoint.resolve()), "checkpoint_time": time}

    def note(self, number: int) -> dict[str, Any]:
        """Return what a picture says of itself; no paths of this machine but the names of run and weights."""
        names = {"run": self.run.folder.resolve().name, "checkpoint": self.run.checkpoint.name}
        return {**self.settings, **names, "number": number, "vae": Path(self.codec.name).name}

    def advise(self, batch: int) -> None:
        """Tell, in the main process, of a larger batch that would fit, after one of `batch`."""
        model = self.run.model
        copies = 0 if self.solver.precision == "fp32" else 2 * sum(each.numel() for each in model.parameters())
        advice = suggest_batch_size(batch, self.run.null_tokens.device, copies)
        if advice and self.state.is_main_process:
            tqdm.write(advice)

    @cached_property
    def embedder(self) -> PatchEmbedder:
        return load_embedder(self.run.config, self.run.null_tokens.device, self.root, self.args.encoder)

    def origin(self, paths: Sequence[Path], embedded: bool) -> dict[str, Any]:
        """What tells conditions from files apart: the files' content and, of what is embedded now, the embedder's."""
        for path in paths:
            if not path.is_file():
                there = "is a folder: name the files in it" if path.is_dir() else "is not there"
                raise MissingError(f"no file {path} to condition on: it {there}")
        about = {"conditions": [[path.name, fingerprint_file(path)] for path in paths]}
        return {**about, "encoder": [self.embedder.name, self.embedder.fingerprint]} if embedded else about


def open_session(args: argparse.Namespace) -> Session:
    """Open a run as the command line says. Raises MissingError, InputError for a run, weights, codec, device or solver that cannot be."""
    device = prepare_device(args.device)
    state = start_processes(device)
    device = state.device
    if args.gpu_id is not None and device.type == "cuda" and state.num_processes == 1:
        count = torch.cuda.device_count()
        if args.gpu_id >= count:
            raise InputError(f"--gpu_id {args.gpu_id}: this machine has {count} GPUs, counted from 0")
        device = torch.device("cuda", args.gpu_id)
        torch.cuda.set_device(device)
    if args.precision == "fp16" and device.type == "cpu":
        raise InputError("--precision fp16 needs a GPU; on a CPU take fp32, or bf16 where the processor has it")
    interval = tuple(args.guidance_interval) if args.guidance_interval else None
    solver = Solver(args.sampling_steps, args.guidance_strength, args.sampling_algo, interval, args.precision)
    run = open_run(args.workdir or default_work_dir(), args.checkpoint, device, ema=args.weights == "ema")
    if args.compile:
        run.model.compile_blocks()
    config = run.config
    if args.vae:  # its own scale goes with it
        config = dataclasses.replace(config, vae_pretrained=args.vae, scale_factor=None, shift_factor=None)
    codec = load_codec(config, device, args.root or config.data_root)
    return Session(args, state, run, codec, solver)


def open_index(session: Session) -> PanCancerData:
    """Open the run's data set, or the one that the command line names, and hold it against the network."""
    args, config = session.args, session.run.config
    arguments = {**config.data_arguments, "root": getattr(args, "data_root", None) or session.root}
    for name in ("patch_names_file", "features_dir"):
        arguments[name] = getattr(args, name, None) or arguments[name]
    dataset = open_conditions(arguments, getattr(args, "subset_keys", None))
    check_tokens(config, dataset)
    return dataset


def sample_patches(
    args: argparse.Namespace,
    sizes: Sequence[int],
    with_real: bool = True,
    tissue: Path | None = None,
    needs_real: bool = False,
) -> int:
    """Fill a folder with images of the network's own size, which must be one of `sizes`; go on where one was left.

    with_real: whether tissue that conditions is written, too; tissue: another folder for it than `real` beside them;
    needs_real: whether to refuse conditions without.
    Returns the size.
    """
    if args.images and args.tokens:
        raise InputError("--images and --tokens: one of them conditions; give one")
    session = open_session(args)
    config, state = session.run.config, session.state
    if config.image_size not in sizes:
        known = " and ".join(str(size) for size in sizes)
        raise InputError(f"{session.run.folder} was trained at {config.image_size} pixels: this tool samples {known}")
    conditions, origin = choose_conditions(session, with_real)
    count = args.n_images or (args.count if isinstance(conditions, IndexConditions) else len(conditions))

    if needs_real and not any(map(conditions.has_pixels, range(min(count, LOOKED_AT)))):
        raise InputError(
            f"the patches that condition have no images in {session.root / 'patches'}, so there is nothing to score samples "
            "against; put them there, or score against other tissue with --real"
        )
    folder = Folder(args.out_dir, args.format, tissue)
    todo = folder.missing(count, conditions.has_pixels)
    if state.is_main_process:
        settings = {"pictures": "patches", **session.settings, "format": args.format}
        folder.claim({**settings, **origin.content}, {**session.places, **origin.places})
    on = describe_device(state.device, state.num_processes, args.precision)
    state.print(f"{count - len(todo)} of {count} images are there; sampling {len(todo)} on {on}")
    state.wait_for_everyone()  # every process has looked before one of them writes
    make = ImageMaker(session.run, session.codec, conditions, args.seed, session.solver)
    mine = todo[state.process_index :: state.num_processes]
    with tqdm(total=len(mine), unit="image", disable=not state.is_main_process) as progress:
        for first in range(0, len(mine), args.batch_size):
            for i, condition, pixels in make.images(mine[first : first + args.batch_size]):
                folder.write(i, condition, pixels, session.note(i))
                progress.update()
            if first == 0 and args.batch_size < len(mine):
                session.advise(args.batch_size)
    state.wait_for_everyone()
    if state.is_main_process:
        report(args.out_dir / SYNTHETIC_DIR, folder.real, conditions, count)
    return config.image_size


class Origin(NamedTuple):
    """What conditions are of: what tells them from others wherever they lie, and where they lie."""

    content: dict[str, Any]
    places: dict[str, Any]


def report(samples: Path, real: Path, conditions: IndexConditions | Repeated, count: int) -> None:
    """Print how many images there are, and of how many the tissue is there to compare with."""
    names = set(os.listdir(samples))
    tissue = len(names & set(os.listdir(real))) if real.is_dir() else 0
    of_them = "them" if tissue == count else f"{tissue} of them"
    print(f"{count} images in {samples}" + (f", the tissue that conditioned {of_them} in {real}" if tissue else ""))
    if isinstance(conditions, IndexConditions) and conditions.pixels and tissue < count:
        print(
            f"{count - tissue} patches have no image in {conditions.dataset.root / 'patches'}: nothing to compare with"
        )


def choose_conditions(session: Session, pixels: bool = True) -> tuple[IndexConditions | Repeated, Origin]:
    """Take the conditions of image files, of files of tokens, or of the index; and say what they are of.

    pixels: whether they carry the tissue that they are of.
    """
    args, config = session.args, session.run.config
    paths = args.images or args.tokens
    if not paths:
        dataset = open_index(session)
        return IndexConditions(dataset, args.seed, pixels), origin_of(dataset)
    origin = origin_of_files(session)
    listed = list(
        from_images(paths, session.embedder, config.image_size)
        if args.images
        else from_token_files(paths, config.model_max_length)
    )
    for condition in listed:
        check_shape(config, condition.tokens, condition.name)
    if not pixels:
        listed = [dataclasses.replace(condition, pixels=None) for condition in listed]
    return Repeated(listed), origin


def origin_of_files(session: Session) -> Origin:
    """Tell the conditions of --images or --tokens from others."""
    args = session.args
    return Origin(session.origin(args.images or args.tokens, embedded=bool(args.images)), {})


def find_origin(session: Session) -> Origin:
    """Say what the conditions of a session are of, without reading them."""
    args = session.args
    return origin_of_files(session) if args.images or args.tokens else origin_of(open_index(session))


def origin_of(dataset: PanCancerData) -> Origin:
    """Tell the conditions of one index from those of another."""
    places = {
        "index": str(dataset.index.path.resolve()),
        "keys": dataset.index.keys,
        "features": sorted({str(features.folder.resolve()) for features in dataset.features}),
        "ssl_prefix": dataset.ssl_prefix,
    }
    return Origin({"data": dataset.identity()}, places)


class Repeated(Sequence[Condition]):
    """Some conditions, begun again when they are through."""

    def __init__(self, conditions: Sequence[Condition]):
        self.conditions = conditions

    def __len__(self) -> int:
        return len(self.conditions)

    def __getitem__(self, i: int) -> Condition:
        return self.conditions[i % len(self.conditions)]

    def has_pixels(self, i: int) -> bool:
        """Tell whether condition `i` carries its tissue."""
        return self[i].pixels is not None
