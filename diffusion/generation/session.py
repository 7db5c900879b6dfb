"""A run opened for sampling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from diffusion.components import load_codec, load_embedder
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec
from diffusion.formats import LAST_WEIGHTS
from diffusion.generation.solver import Solver
from diffusion.model.student import STUDENT_KEY
from diffusion.spacing import UNIFORM
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import prepare_device, suggest_batch_size
from diffusion.utils.launch import start_processes
from diffusion.utils.text import expand_path
from diffusion.workdir import Run, add_loras, default_work_dir, open_run, with_controlnet, with_weak


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
    loras: Sequence[tuple[Path, float]] = ()

    @property
    def device(self) -> torch.device:
        """Return the device of the network."""
        return self.run.device

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return what all images of a folder have in common, independent of where weights and data are stored."""
        solver, student = self.solver, self.run.student
        return {
            "seed": self.seed,
            "sampling_steps": solver.taken_steps,
            "guidance_strength": student.guidance if student else solver.strength(self.run),
            "guidance_interval": solver.guidance_interval,
            "sampling_algo": solver.algorithm,
            **({} if solver.spacing == UNIFORM else {"spacing": solver.spacing}),
            "precision": solver.precision,
            **solver.block_cache_record,
            **({STUDENT_KEY: student.to_dict()} if student else {}),
            **({"compiled": True} if self.compiled else {}),  # which rounds otherwise
            **({} if self.averaged else {"averaged": False}),
            **self.steering,
            "weights": self.run.fingerprint,
            "vae_weights": self.codec.fingerprint,
        }

    @property
    def steering(self) -> dict[str, Any]:
        """Return what identifies what is beside the network (adapters, what guides it, a ControlNet), and how much it counts."""
        solver = self.solver
        found: dict[str, Any] = {}
        if self.loras:
            found |= {"loras": [scale for _, scale in self.loras], "adapted": self.run.fingerprint}
        if self.run.weak is not None:
            found["autoguidance"] = self.run.weak_fingerprint
        if self.run.controlnet is not None:
            found |= {
                "controlnet": self.run.controlnet_fingerprint,
                "control_scale": solver.control_scale,
                "control_interval": solver.control_interval,
                "control_in_null": solver.control_in_null,
            }
        return found

    @property
    def locations(self) -> dict[str, Any]:
        """Return where codec and weights are stored: for readers, and to recognise folders written by older versions."""
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

    def with_solver(self, solver: Solver, seed: int) -> Session:
        """Return the same run, codec and embedder, sampled with another solver, for this run, and seed."""
        other = dataclasses.replace(self, solver=solver.for_run(self.run), seed=seed)
        other.__dict__["embedder"] = self.embedder  # the value of the cached property, which is loaded once
        return other

    @cached_property
    def embedder(self) -> PatchEmbedder:
        """Load the embedder of images and slides. Raises MissingError, InputError."""
        return load_embedder(self.run.config, self.device, self.root, self.encoder)


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
    device: str | torch.device = "auto",
    gpu_id: int | None = None,
    loras: Sequence[str] = (),
    controlnet: Path | None = None,
    autoguidance: Path | None = None,
) -> Session:
    """Open a run for sampling.

    workdir: of a training run, or released weights; None: the default one. checkpoint: relative to it. averaged: which
    weights of a checkpoint that holds both. compiled: compile the network. root: of data and codec, None: the run's.
    vae, encoder: other ones than the run's. device: as the option --device; gpu_id: which GPU of several. loras: adapters to
    add, `FILE` or `FILE:SCALE`. controlnet: another one than the run's, if it has one. autoguidance: a weaker network that guides
    instead of the null condition, a checkpoint of the run or another run.
    Raises MissingError, InputError for a run, weights, codec or device that cannot be opened.
    """
    solver = solver or Solver()
    place = prepare_device(device)
    state = start_processes(place)
    place = torch.device(state.device or place)
    if gpu_id is not None and place.type == "cuda" and state.num_processes == 1:
        count = torch.cuda.device_count()
        if gpu_id >= count:
            raise InputError(f"--gpu {gpu_id}: this machine has {count} GPUs, counted from 0")
        place = torch.device("cuda", gpu_id)
        torch.cuda.set_device(place)
    if solver.precision == "fp16" and place.type == "cpu":
        raise InputError("--precision fp16 needs a GPU; on a CPU take fp32, or bf16 where the processor has it")
    run = open_run(workdir or default_work_dir(), checkpoint, place, ema=averaged)
    adapters = [split_scale(text) for text in loras]
    own = run.merged_adapter
    if own is not None and any(Path(own).resolve() == path.resolve() for path, _ in adapters):
        raise InputError(f"--lora {own}: {run.folder} was trained beside a network that has it already; leave it out")
    add_loras(run, adapters)
    if controlnet is not None:
        run = with_controlnet(run, controlnet, averaged)
    if run.controlnet is None and solver.sets_control:
        raise InputError(f"options of a control, and {run.folder} has no ControlNet; name one with --controlnet")
    if autoguidance is not None:
        run = with_weak(run, autoguidance, averaged)
    solver = solver.for_run(run)
    if compiled:
        run.model.compile_blocks()
        if run.weak is not None:
            run.weak.compile_blocks()
        if run.controlnet is not None:
            run.controlnet.compile_blocks()
    config = run.config
    if vae:  # its own scale goes with it
        config = dataclasses.replace(config, vae_pretrained=vae, scale_factor=None, shift_factor=None)
    root = root or config.data_root
    codec = load_codec(config, place, root)
    return Session(state, run, codec, solver, seed, root, encoder, compiled, averaged, adapters)


def split_scale(text: str, option: str = "--lora", what: str = "scale") -> tuple[Path, float]:
    """Return the path and the scale of `FILE:SCALE`; 1 where there is none. Raises InputError for a scale that is no number.

    option, what: the option, and what its number is called, for messages.
    """
    path, colon, scale = text.rpartition(":")
    if not colon or len(path) == 1 or Path(text).exists():  # C:\\adapter has none, either
        return Path(expand_path(text)), 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{option} {text}: got the {what} {scale!r}, expected a finite number")
    return Path(expand_path(path)), value
