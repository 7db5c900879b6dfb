"""What a run's config names beside its network: the codec with the scale of its latents, the embedder, and its tokens' shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from diffusion.config.settings import Config
from diffusion.data.batch import PatchItem
from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec, LatentScale
from diffusion.encoders.vae_files import EMBEDDED_CODECS, codec_folder
from diffusion.formats import SSL_PREFIX
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import expand_path, shortest_names

PROBES = 16  # samples tried before a data set counts as unreadable


def check_dataset_tokens(dataset: PanCancerData | SkipBad, length: int, width: int) -> None:
    """Read one sample of a data set and check that its tokens are (length, width), as the network takes them.

    Raises InputError when they are not, or when none of some samples can be read.
    """
    first_error = ""
    for sample in (dataset[i * len(dataset) // PROBES] for i in range(PROBES)):
        if isinstance(sample, PatchItem):
            return check_tokens(sample.tokens, length, width, sample.name)
        first_error = first_error or sample.reason
    raise InputError(f"none of {PROBES} items can be read; the first: {first_error}")


def check_tokens(tokens: torch.Tensor, length: int, width: int, name: str) -> None:
    """Raise InputError unless tokens are (length, width), as the network takes them; name: of the patch they are from."""
    if tuple(tokens.shape) != (length, width):
        raise InputError(
            f"the tokens of {name} are {tuple(tokens.shape)}: the config expects {(length, width)}; "
            "set caption_channels to the embedding width, or extract with the encoder it was meant for"
        )


def resolve_vae(vae: str, root: Path) -> str | Path:
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


def name_codecs(vaes: Sequence[str], root: Path) -> dict[str, str | Path]:
    """Return the place of each codec by a short name, the last parts of its path that no other has.

    Raises MissingError, and InputError for a codec that is named twice.
    """
    locations = [resolve_vae(vae, root) for vae in vaes]
    folders = [codec_folder(location).resolve() for location in locations]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise InputError(f"--vae: {vaes[i]} is named more than once; name each codec once")
    return dict(zip(shortest_names([Path(location) for location in locations]), locations, strict=True))


def load_codec(config: Config, device: torch.device, root: Path | None = None) -> LatentCodec:
    """Load the codec of a run's latents. Raises MissingError, InputError (as `resolve_latent_scale`)."""
    resolve_latent_scale(config, root)
    return LatentCodec.load(resolve_vae(config.vae_pretrained, root or config.data_root), device)


def load_embedder(
    config: Config, device: torch.device, root: Path | None = None, encoder: str | None = None
) -> PatchEmbedder:
    """Load the embedder that a run's features came from, by their ending, or the one named.

    Raises MissingError, and InputError for an embedder of another width than the network's tokens.
    """
    own = "uni2" if config.data.ssl_prefix == SSL_PREFIX else config.data.ssl_prefix
    embedder = PatchEmbedder.load(encoder or own, device, root=root or config.data_root)
    if embedder.width != config.caption_channels:
        raise InputError(
            f"{embedder.name} makes embeddings of {embedder.width} values, and the network takes {config.caption_channels}; "
            "name the encoder that its features came from with --encoder"
        )
    return embedder


def resolve_latent_scale(config: Config, root: Path | None = None) -> LatentScale:
    """Return scale and shift of a run's latents: the config's numbers, else those of its VAE's own config.json.

    Raises InputError when both are there and differ.
    """
    scale, shift = config.scale_factor, config.shift_factor  # a config has both or none
    given = LatentScale(scale, shift) if scale is not None and shift is not None else None
    try:
        own = LatentScale.from_folder(codec_folder(resolve_vae(config.vae_pretrained, root or config.data_root)))
    except MissingError:
        if given is None:
            raise
        return given
    if given is not None and given != own:
        raise InputError(
            f"scale_factor {given.scale}, shift_factor {given.shift} contradict {config.vae_pretrained}, which has {own.scale}, {own.shift}"
        )
    return own
