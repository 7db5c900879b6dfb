"""A finished (or running) run seen from outside: its settings, its network, its codec. The one door for sampling and scoring."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from diffusion.config.files import read_config
from diffusion.config.settings import Config, DataConfig
from diffusion.data.batch import PatchItem
from diffusion.data.datasets.pan_cancer import LARGE_PATCH, PanCancerData, SkipBad
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec, LatentScale
from diffusion.encoders.networks import EMBEDDERS
from diffusion.encoders.vae_files import EMBEDDED_CODECS, codec_folder
from diffusion.formats import CONFIG_FILE, LAST_WEIGHTS, LATENT_FACTOR, PIPELINE_INDEX, SSL_PREFIX
from diffusion.model.convert import Weights, check_told, load_into, load_weights, with_positions_of
from diffusion.model.pixart import PixArt, build_model
from diffusion.model.pixart_config import PixArtConfig
from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import check_writable
from diffusion.utils.folders import SkippedEntries, walk_files
from diffusion.utils.locks import is_locked
from diffusion.utils.text import abbreviate, expand_path
from diffusion.utils.weights import find_weights

LOCK_FILE = ".lock"
PROBES = 16  # samples tried before a data set counts as unreadable


@dataclass(frozen=True)
class Run:
    """A work dir's settings and one of its networks, in eval mode on its device."""

    folder: Path
    checkpoint: Path
    config: Config
    model: PixArt

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the network's weights; about a second a gigabyte."""
        return fingerprint_tensors(self.model.state_dict())

    @property
    def null_tokens(self) -> torch.Tensor:
        """The null condition (L, D)."""
        return self.model.null_condition


def open_run(work_dir: str | Path, checkpoint: str | Path, device: torch.device, ema: bool = True) -> Run:
    """Open a run; a relative checkpoint is looked up in the work dir. ema: of a file with both, take averaged weights.

    work_dir may also be weights alone, as released: a checkpoint, or a diffusers folder.
    Raises MissingError, or InputError for a checkpoint of another architecture than the saved config's.
    """
    folder = Path(work_dir)
    if _is_weights(folder):
        weights = load_weights(folder, ema)
        return _opened(folder, folder, _config_of(weights, folder), weights, device)
    if not folder.is_dir():
        raise MissingError(f"no work dir {folder}")
    config, path = read_config(folder / CONFIG_FILE), folder / checkpoint
    if not path.exists():
        others = sorted(other.name for suffix in ("ckpt", "pth") for other in path.parent.glob(f"*.{suffix}"))
        there = f"; there are {abbreviate(others)} in that folder, which --checkpoint names" if others else ""
        raise MissingError(f"no weights at {path}{there}")
    return _opened(folder, path, config, load_weights(path, ema, positions=False), device)


def _is_weights(path: Path) -> bool:
    """Tell weights alone, a file or a folder, from the work dir of a run."""
    if any((path / name).is_file() for name in (PIPELINE_INDEX, "config.json")):
        return True
    return path.is_file() or (path.is_dir() and not (path / CONFIG_FILE).exists() and find_weights(path) is not None)


def _opened(folder: Path, path: Path, config: Config, weights: Weights, device: torch.device) -> Run:
    model = build_model(config.model, **config.model_arguments)
    check_told(weights.told, model, config.prediction_type, path)
    load_into(model, with_positions_of(model, weights.state_dict), path)
    # requires_grad stays on: autocast keeps half-precision copies of such weights alone, and casts others at every step
    return Run(folder, path, config, model.eval().to(device))


def _config_of(weights: Weights, source: Path) -> Config:
    """Return the settings that weights alone imply: their architecture, the released networks' codec, the embedder of that
    width, and patches of 1024 pixels or crops of these, as published."""
    own = dict(weights.architecture)
    if "num_heads" not in own or "pe_interpolation" not in own:
        raise InputError(f"{source} does not say enough of its network; convert it with tools/convert_checkpoint.py")
    by_width = {spec.width: spec.name for spec in EMBEDDERS.values()}
    embedder = by_width.get(own["caption_channels"], "uni2")
    keys = ("model_max_length", "caption_channels", "use_cond_pos_embed", "pe_interpolation", "qk_norm")
    keys += tuple(PixArtConfig.TRAINING_ONLY & own.keys())
    size = own.pop("input_size") * LATENT_FACTOR
    data = "PanCancerDataLowRes" if size < LARGE_PATCH else "PanCancerData"
    return Config(
        image_size=size,
        data=DataConfig(type=data, ssl_prefix=SSL_PREFIX if embedder == "uni2" else embedder),
        prediction_type=weights.told.get("prediction_type", "epsilon"),
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
    runs = [path.parents[1] for path in files if path.match(LAST_WEIGHTS) and (path.parents[1] / CONFIG_FILE).is_file()]
    if not runs:
        skipped.report()
        raise MissingError("no run in ./output; name one with --workdir or $PIXCELL_WORKDIR")
    return max(runs, key=lambda folder: (folder / LAST_WEIGHTS).stat().st_mtime_ns)


def check_work_dir(work_dir: Path) -> None:
    """Raise InputError for a work dir that cannot be made or written, or in which another process trains."""
    try:
        check_writable(work_dir)
    except InputError as error:
        raise InputError(f"--work-dir {work_dir}: {error}") from None
    if is_locked(work_dir / LOCK_FILE):
        raise InputError(f"another process is at work here: it holds {work_dir / LOCK_FILE}; wait for it to end")


def check_tokens(config: Config, dataset: PanCancerData | SkipBad) -> None:
    """Read one sample and hold its tokens against the network's.

    Raises InputError when they differ in number or width, or none of some samples can be read.
    """
    samples = (dataset[i * len(dataset) // PROBES] for i in range(PROBES))
    item = next((sample for sample in samples if isinstance(sample, PatchItem)), None)
    if item is None:
        raise InputError(f"none of {PROBES} items can be read; the first: {dataset[0].reason}")
    check_shape(config, item.tokens, item.name)


def check_shape(config: Config, tokens: torch.Tensor, name: str) -> None:
    """Raises InputError unless tokens are the network's (L, D); name: whose they are."""
    wanted = (config.model_max_length, config.caption_channels)
    if tuple(tokens.shape) != wanted:
        raise InputError(
            f"the tokens of {name} are {tuple(tokens.shape)}: the config expects {wanted}; "
            "set caption_channels to the embedding width, or extract with the encoder it was meant for"
        )


def vae_location(vae: str, root: Path) -> str | Path:
    """Return an embedded codec's name, or a folder: absolute, else below `root`, else below the current folder."""
    if vae in EMBEDDED_CODECS:
        return vae
    vae = expand_path(vae)
    places = [root / vae, Path(vae)]
    for place in places:
        if place.is_dir():
            return place
    names = ", ".join(EMBEDDED_CODECS)
    raise MissingError(
        f"no VAE folder {' or '.join(str(place) for place in dict.fromkeys(places))}; "
        f"name another (--vae, or vae_pretrained of a config), embedded ones are: {names}"
    )


def load_codec(config: Config, device: torch.device, root: Path | None = None) -> LatentCodec:
    """The codec of a run's latents. Raises MissingError, InputError (as `latent_scale`)."""
    latent_scale(config, root)
    return LatentCodec.load(vae_location(config.vae_pretrained, root or config.data_root), device)


def load_embedder(
    config: Config, device: torch.device, root: Path | None = None, encoder: str | None = None
) -> PatchEmbedder:
    """The embedder that a run's features came from, by their ending, or the one named. Raises MissingError, InputError."""
    of_the_run = "uni2" if config.data.ssl_prefix == SSL_PREFIX else config.data.ssl_prefix
    embedder = PatchEmbedder.load(encoder or of_the_run, device, root=root or config.data_root)
    if embedder.width != config.caption_channels:
        raise InputError(
            f"{embedder.name} makes embeddings of {embedder.width} values, and the network takes {config.caption_channels}; "
            "name the encoder that its features came from with --encoder"
        )
    return embedder


def latent_scale(config: Config, root: Path | None = None) -> LatentScale:
    """Scale and shift of a run's latents: the config's numbers, else those of its VAE's own config.json.

    Raises InputError when both are there and differ.
    """
    given = None if config.scale_factor is None else LatentScale(config.scale_factor, config.shift_factor)
    try:
        own = LatentScale.from_folder(codec_folder(vae_location(config.vae_pretrained, root or config.data_root)))
    except MissingError:
        if given is None:
            raise
        return given
    if given not in (None, own):
        raise InputError(
            f"scale_factor {given.scale}, shift_factor {given.shift} contradict {config.vae_pretrained}, which has {own.scale}, {own.shift}"
        )
    return own
