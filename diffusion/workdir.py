"""A finished (or running) run seen from outside: its settings and its network. The one door for sampling and scoring."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from diffusion.caching import CachedNetwork, CacheSchedule
from diffusion.config.distillation_settings import DistillationConfig
from diffusion.config.files import read_config
from diffusion.config.settings import Config, ControlConfig, DataConfig
from diffusion.control import ControlledNetwork
from diffusion.data.datasets.pan_cancer import LARGE_PATCH
from diffusion.encoders.networks import EMBEDDERS
from diffusion.formats import CONFIG_FILE, LAST_WEIGHTS, LATENT_FACTOR, PIPELINE_INDEX, SSL_PREFIX
from diffusion.model.controlnet import ControlNet, check_control_fits, load_controlnet
from diffusion.model.convert import Weights, load_network, load_weights
from diffusion.model.jumps import JumpingNetwork
from diffusion.model.lora import load_lora, merge_lora
from diffusion.model.matching import add_positions, check_metadata, load_into
from diffusion.model.pixart import PixArt, build_model
from diffusion.model.pixart_config import PixArtConfig
from diffusion.model.student import Student
from diffusion.utils.assets import network_folder
from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import check_writable
from diffusion.utils.folders import SkippedEntries, walk_files
from diffusion.utils.literals import read_assignments
from diffusion.utils.locks import is_locked
from diffusion.utils.text import abbreviate, expand_path
from diffusion.utils.weights import find_weights

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
Predictor = PixArt | JumpingNetwork | ControlledNetwork | CachedNetwork
OPENED = {
    "denoising": Config,
    "control": ControlConfig,
    "distillation": DistillationConfig,
}  # tasks whose runs can be sampled


@dataclass(frozen=True)
class Run:
    """A work dir's settings and one of its networks, in eval mode on its device.

    controlnet: what may steer it. weak: a network that guides it instead of its null condition.
    """

    folder: Path
    checkpoint: Path
    config: Config
    model: PixArt
    controlnet: ControlNet | None = None
    weak: PixArt | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the network's weights; takes about a second a gigabyte."""
        return fingerprint_tensors(self.model.state_dict())

    @cached_property
    def controlnet_fingerprint(self) -> str | None:
        """Return a hash of the ControlNet's weights, if there is one."""
        return fingerprint_tensors(self.controlnet.state_dict()) if self.controlnet is not None else None

    @cached_property
    def weak_fingerprint(self) -> str | None:
        """Return a hash of the weights of the network that guides, if there is one."""
        return fingerprint_tensors(self.weak.state_dict()) if self.weak is not None else None

    @property
    def merged_adapter(self) -> str | None:
        """Return the adapter that the network has for good, since its ControlNet was trained beside it; None without."""
        return self.config.lora.load_from if isinstance(self.config, ControlConfig) else None

    @property
    def student(self) -> Student | None:
        """Return what the network was distilled for; None: it was not."""
        return self.model.student

    def predictor(
        self,
        control_interval: tuple[float, float] | None = None,
        cache: CacheSchedule | None = None,
        timesteps: Sequence[int] = (),
    ) -> Predictor:
        """Return what predicts: the network, with its ControlNet, if it has one, at noise levels of an interval; None: all.

        cache: at which steps of one sampling blocks are computed; None: at all. timesteps: those of the sampling, of which a
        student of trajectories is told where each step ends.
        """
        return self._steered(self.model, control_interval, cache, timesteps)

    def weak_predictor(
        self, control_interval: tuple[float, float] | None = None, cache: CacheSchedule | None = None
    ) -> Predictor | None:
        """Return the network that guides, as `predictor` returns the network itself; None without one."""
        return None if self.weak is None else self._steered(self.weak, control_interval, cache)

    def _steered(
        self,
        model: PixArt,
        interval: tuple[float, float] | None,
        schedule: CacheSchedule | None,
        timesteps: Sequence[int] = (),
    ) -> Predictor:
        cached = None if schedule is None else CachedNetwork(model, schedule)
        base = JumpingNetwork(model, timesteps) if model.config.use_target_timestep else cached or model
        if self.controlnet is None:
            return base
        return ControlledNetwork(base, self.controlnet, interval, skip=None if cached is None else cached.reuses)

    @property
    def device(self) -> torch.device:
        """Return where the network is."""
        return self.model.null_condition.device


def open_run(work_dir: str | Path, checkpoint: str | Path, device: torch.device, ema: bool = True) -> Run:
    """Open a run, with the weights of a checkpoint, which is looked up in the work dir when relative.

    ema: of a file with averaged and raw weights take the averaged ones. work_dir may also be the name of a network that
    comes with the package, or weights alone, as released: a checkpoint, or a diffusers folder. One that pixcell push wrote
    has settings of its own; what others do not say is as published. A run of the task `control`, and a pipeline's folder with a
    ControlNet, open as the network that is steered, with the ControlNet beside it.
    Raises MissingError, or InputError for a checkpoint of another architecture than the saved config's.
    """
    folder = network_folder(work_dir)
    if _is_weights(folder):
        weights = load_weights(folder, ema)
        run = _load_run(folder, folder, _published_config(weights, folder), weights, device)
        return with_controlnet(run, folder) if (folder / "controlnet").is_dir() else run
    if not folder.is_dir():
        raise MissingError(
            f"no work dir {folder}; name one with --workdir: that of a training run, or weights that pixcell download fetched"
        )
    config, path = read_config(folder / CONFIG_FILE, OPENED), folder / checkpoint
    assert isinstance(config, Config)  # read_config refuses other tasks
    if not path.exists():
        present = sorted(file.name for suffix in ("ckpt", "pth") for file in path.parent.glob(f"*.{suffix}"))
        hint = (
            f"; there are {abbreviate(present)} in that folder, which --checkpoint names"
            if present
            else "; name others with --checkpoint, or train until the run has saved some"
        )
        raise MissingError(f"no weights at {path}{hint}")
    if isinstance(config, ControlConfig):
        base, prediction = config.control.base or "", config.prediction_type
        model, _ = load_network(base, config.model, config.model_arguments, prediction)
        if config.lora.load_from is not None:
            load_lora(model, config.lora.load_from)
            merge_lora(model)
        return with_controlnet(Run(folder, path, config, model.eval().to(device)), path, ema)
    if config.lora.rank:
        base, prediction = config.adapted or "", config.prediction_type
        model, _ = load_network(base, config.model, config.model_arguments, prediction)
        load_lora(model, path, name="run", ema=ema)
        return Run(folder, path, config, model.eval().to(device))
    return _load_run(folder, path, config, load_weights(path, ema, positions=False), device)


def add_loras(run: Run, loras: Sequence[tuple[str | Path, float]]) -> None:
    """Add adapters to the network of a run, in place, each with how much it counts. Raises MissingError, InputError."""
    for number, (path, scale) in enumerate(loras):
        load_lora(run.model, path, scale, name=f"lora_{number}")  # the same one may be there twice
    run.__dict__.pop("fingerprint", None)  # which was that of the network without them


def with_controlnet(run: Run, source: str | Path, ema: bool = True) -> Run:
    """Return a run with a ControlNet beside its network, read from `source` as `load_controlnet` does.

    Raises MissingError, and InputError for a ControlNet of another network.
    """
    controlnet = load_controlnet(source, ema)
    check_control_fits(controlnet.config, run.model.config)
    return dataclasses.replace(run, controlnet=controlnet.to(run.device))


def with_weak(run: Run, source: str | Path, ema: bool = True) -> Run:
    """Return a run that is guided by a weaker network: another checkpoint of its folder, or another run or released weights.

    Raises MissingError, and InputError for a network of other latents, conditions or predictions.
    """
    inside = (run.folder / source).is_file()
    other = open_run(run.folder if inside else source, source if inside else LAST_WEIGHTS, run.device, ema)
    if other.controlnet is not None:
        raise InputError(f"--autoguidance {source} is a ControlNet's run: expected a network")
    if other.student is not None:
        raise InputError(
            f"--autoguidance {source} is a student, which has its own guidance: expected a network without"
        )
    own, found = run.model.config, other.model.config
    for name in ("in_channels", "caption_channels", "model_max_length", "patch_size"):
        if getattr(own, name) != getattr(found, name):
            raise InputError(
                f"--autoguidance {source}: {name} {getattr(found, name)}, and the network's is {getattr(own, name)}: expected the same"
            )
    if other.config.prediction_type != run.config.prediction_type:
        raise InputError(
            f"--autoguidance {source} predicts {other.config.prediction_type}, and the network {run.config.prediction_type}: expected "
            "the same"
        )
    return dataclasses.replace(run, weak=other.model)


def find_weak(folder: Path, source: str | Path) -> Path:
    """Return the file, or the folder of weights, that `with_weak` reads for the run of a folder."""
    inside, run = folder / source, Path(source) / LAST_WEIGHTS
    return inside if inside.is_file() else run if run.is_file() else Path(source)


def _is_weights(path: Path) -> bool:
    """Tell weights alone, a file or a folder, from the work dir of a run."""
    if any((path / name).is_file() for name in (PIPELINE_INDEX, "config.json")):
        return True
    return path.is_file() or (path.is_dir() and not (path / CONFIG_FILE).exists() and find_weights(path) is not None)


def _load_run(folder: Path, path: Path, config: Config, weights: Weights, device: torch.device) -> Run:
    told = {
        name: value for name, value in weights.architecture.items() if name == "use_target_timestep"
    }  # of a student
    model = build_model(config.model, **{**config.model_arguments, **told})
    check_metadata(weights.metadata, model, config.prediction_type, path)
    load_into(model, add_positions(model, weights.state_dict), path)
    model.student = weights.student
    # requires_grad stays on: autocast keeps half-precision copies of such weights alone, and casts others at every step
    return Run(folder, path, config, model.eval().to(device))


def _published_config(weights: Weights, folder: Path) -> Config:
    """Return the settings that published weights have beside them, or else imply; with the codec that is beside them, if any.

    A config.py that is not of this project, or of a later version of it, is left alone, with a warning.
    """
    stored, config = folder / CONFIG_FILE, None
    if stored.is_file():
        try:
            config = read_config(stored)
        except InputError as error:
            log.warning("%s; settings are those that the weights imply", error)
    if not isinstance(config, Config):
        config = _implied_config(weights, folder)
    if (folder / "vae").is_dir():
        config = dataclasses.replace(config, vae_pretrained=str(folder.resolve()))
    return config


def _implied_config(weights: Weights, source: Path) -> Config:
    """Return the settings that weights alone imply, as published.

    These are their architecture, the released networks' codec, the embedder of their width, and patches of 1024 pixels
    or crops of these.
    """
    own = dict(weights.architecture)
    if "num_heads" not in own or "pe_interpolation" not in own:
        raise InputError(f"{source} does not say enough of its network; convert it with pixcell convert")
    by_width = {spec.width: spec.name for spec in EMBEDDERS.values()}
    embedder = by_width.get(own["caption_channels"], "uni2")
    keys = ("model_max_length", "caption_channels", "use_cond_pos_embed", "pe_interpolation", "qk_norm")
    keys += tuple(PixArtConfig.TRAINING_ONLY & own.keys())
    size = own.pop("input_size") * LATENT_FACTOR
    data = "PanCancerDataLowRes" if size < LARGE_PATCH else "PanCancerData"
    return Config(
        image_size=size,
        data=DataConfig(type=data, ssl_prefix=SSL_PREFIX if embedder == "uni2" else embedder),
        prediction_type=weights.prediction_type,
        **{name: own.pop(name) for name in keys},
        model_kwargs=own,
    )


def default_work_dir() -> Path:
    """Return $PIXCELL_WORKDIR, else the run below ./output whose weights are the newest. Raises MissingError."""
    named = os.environ.get("PIXCELL_WORKDIR")
    if named:
        return Path(expand_path(named))
    skipped = SkippedEntries()
    files = walk_files(Path("output"), skipped) if Path("output").is_dir() else ()
    runs = [path.parents[1] for path in files if path.match(LAST_WEIGHTS) and _can_be_sampled(path.parents[1])]
    if not runs:
        skipped.report()
        raise MissingError(
            "no run in ./output; name one with --workdir or $PIXCELL_WORKDIR, such as nano, which comes with pixcell"
        )
    return max(runs, key=lambda folder: (folder / LAST_WEIGHTS).stat().st_mtime_ns)


def _can_be_sampled(folder: Path) -> bool:
    """Tell whether a run, if it is one, is of a network that is sampled, and not of a flow or a codec."""
    file = folder / CONFIG_FILE
    try:
        return file.is_file() and str(read_assignments(file).get("task", "denoising")) in OPENED
    except InputError:
        return True  # which says what is wrong when it is opened


def check_work_dir(work_dir: Path) -> None:
    """Raise InputError for a work dir that cannot be made or written, or in which another process trains."""
    try:
        check_writable(work_dir)
    except InputError as error:
        raise InputError(f"--workdir {work_dir}: {error}") from None
    if is_locked(work_dir / LOCK_FILE):
        raise InputError(f"another process is at work here: it holds {work_dir / LOCK_FILE}; wait for it to end")
