"""Files of autoencoders: folders as diffusers writes them, and weights in the layouts that they are released in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion.formats import DIFFUSERS_WEIGHTS, LATENT_CHANNELS, LATENT_FACTOR, PIPELINE_INDEX
from diffusion.utils.assets import ASSETS
from diffusion.utils.content import recognise_placeholder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.state_dicts import check_types, find_state_dict
from diffusion.utils.text import read_json
from diffusion.utils.weights import find_weights, read_weights

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

ANCHOR = "encoder.conv_in.weight"  # a tensor that every autoencoder has
LDM_NAME = "encoder.down.0.block.0.conv1.weight"  # in the layout of CompVis, which single files are released in
LOSS_PREFIX = "loss."  # begins the names of what CompVis' autoencoders are trained with
EARLIER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of diffusers before 0.14

# Codecs that come with the repository, by the name that --vae and the config files use.
EMBEDDED_CODECS = {"tiny": ASSETS / "tiny_vae"}


def codec_folder(name_or_folder: str | Path) -> Path:
    """Return the folder of an embedded codec's name, the folder itself, or a pipeline folder's codec. Raises MissingError."""
    folder = EMBEDDED_CODECS.get(str(name_or_folder), Path(name_or_folder))
    if (folder / PIPELINE_INDEX).is_file() and (folder / "vae").is_dir():
        folder = folder / "vae"
    if not folder.is_dir():
        names = ", ".join(sorted(EMBEDDED_CODECS))
        raise MissingError(f"no latent codec at {folder}: expected an AutoencoderKL folder, or one of: {names}")
    return folder


def load_vae(folder: Path, dtype: torch.dtype) -> AutoencoderKL:
    """Load the autoencoder of a folder, with all of its weights, from safetensors or torch files or shards of them.

    Raises MissingError without weights, InputError where they and config.json do not fit each other.
    """
    return read_vae(find_vae_weights(folder), read_vae_config(folder), dtype)


def read_vae(path: Path, config: dict[str, Any], dtype: torch.dtype) -> AutoencoderKL:
    """Build the autoencoder of a config with the weights of a file. Raises InputError where they do not fit each other."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    tensors = find_state_dict(read_weights(path).content, path, (ANCHOR,))
    try:
        with torch.device("meta"):  # every weight comes from the file
            vae: Any = AutoencoderKL.from_config(config)
        tensors = _diffusers_names(tensors, config)
    except Exception as error:  # whatever diffusers says of a config or names that it does not know
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path} is not whole, or does not fit its config.json ({reason})") from None
    expected = vae.state_dict()
    mismatched = [*(expected.keys() - tensors.keys()), *(tensors.keys() - expected.keys())]
    mismatched += [name for name in expected if name in tensors and expected[name].shape != tensors[name].shape]
    if mismatched:
        raise InputError(f"{path} does not fit its config.json, at {len(mismatched)} weights such as {min(mismatched)}")
    check_types(expected, tensors, path)
    vae.load_state_dict(tensors, assign=True)
    torch.nn.Module.to(vae, dtype)  # diffusers' own warns, at every dtype, of modules that this has not
    return vae.eval()


def find_vae_weights(folder: Path) -> Path:
    """Return the weights file in a folder, or the index of its shards. Raises MissingError without one."""
    path = find_weights(folder)
    if path is None:
        raise MissingError(f"no {DIFFUSERS_WEIGHTS} in {folder}, nor other weights under a usual name")
    return path


def _diffusers_names(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Rename tensors of CompVis' layout, or of earlier versions of diffusers, to the names of today's diffusers.

    Raises ValueError for names that CompVis' layout does not have, which its converter would leave out.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(LOSS_PREFIX)}
    if LDM_NAME in tensors:
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

        converted = convert_ldm_vae_checkpoint(tensors, config)
        if len(converted) < len(tensors):
            raise ValueError(f"{len(tensors) - len(converted)} of its {len(tensors)} tensors have unknown names")
        tensors = converted
    renamed = {}
    for name, tensor in tensors.items():
        *module, old, kind = name.split(".") if ".attentions." in name else ("", "", name)
        renamed[".".join((*module, EARLIER_NAMES[old], kind)) if old in EARLIER_NAMES else name] = tensor
    return renamed


def read_vae_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of an AutoencoderKL folder with 16 latent channels at an eighth of the resolution.

    Raises MissingError without one, InputError for another layout, and a scale or shift that is not a finite number.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingError(f"no config.json in {folder}: expected a diffusers AutoencoderKL folder")
    placeholder = recognise_placeholder(path)
    if placeholder:
        raise InputError(f"{path} {placeholder}")
    try:
        config = read_json(path)
        channels, levels = config["latent_channels"], len(config["block_out_channels"])
        scale, shift = float(config["scaling_factor"]), float(config["shift_factor"] or 0.0)
    except (InputError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, InputError) else repr(error)
        raise InputError(f"{path} is not the config of a diffusers AutoencoderKL: {reason}") from error
    if not (0 < scale < math.inf and math.isfinite(shift)):
        raise InputError(
            f"{path}: scaling_factor {scale}, shift_factor {shift}: expected a number above 0, and a number"
        )
    if channels != LATENT_CHANNELS:
        raise InputError(f"{path}: latent_channels is {channels}, expected {LATENT_CHANNELS}")
    if 2 ** (levels - 1) != LATENT_FACTOR:
        raise InputError(f"{path}: {levels} levels downsample by {2 ** (levels - 1)}, expected {LATENT_FACTOR}")
    return config
