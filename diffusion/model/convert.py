"""Weights of PixArt in every format they come in: read and written.

Nothing is ever unpickled: torch files are read with weights_only, everything else is safetensors.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffusion.errors import InputError, MissingError
from diffusion.files import written_aside
from diffusion.model.architecture import (
    PREDICTION_TYPE,
    architecture_of,
    check_architecture,
    diffusers_config,
    infer_architecture,
    position_grid,
)
from diffusion.model.names import DIFFUSERS_CLASS, from_diffusers, to_diffusers
from diffusion.model.pixart import PixArt
from diffusion.weights import read_safetensors, read_torch_file

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLD = "pixcell"  # key of the metadata of safetensors files


class Weights(NamedTuple):
    """A state dict in official names, the PixArt arguments that its names and shapes (or its file) imply, and those told.

    told: what the file itself says, of the PixArt arguments and of `prediction_type`; nothing for released checkpoints.
    """

    state_dict: dict[str, torch.Tensor]
    architecture: dict[str, Any]
    told: dict[str, Any]


def load_weights(path: str | Path, ema: bool = True) -> Weights:
    """Read an official .ckpt/.pth, a checkpoint of this project (file or folder), .safetensors, or a diffusers folder.

    ema: of a checkpoint that holds both, take the averaged weights.
    Raises MissingError, or InputError for a file that is damaged, needs unpickling, or holds no PixArt.
    """
    path = Path(path)
    settings: dict[str, Any] = {}
    if path.is_dir():
        tensors, settings = _read_folder(path, ema)
    elif not path.is_file():
        raise MissingError(f"no weights at {path}")
    elif path.suffix == ".safetensors":
        tensors = read_safetensors(path)
        of_diffusers = "pos_embed.proj.weight" in tensors  # such a file needs the config.json beside it
        settings = _diffusers_settings(path.with_name("config.json")) if of_diffusers else _told_by_safetensors(path)
    else:
        tensors, settings = _read_checkpoint(path, ema)
    if "pos_embed.proj.weight" in tensors:
        tensors = from_diffusers(tensors)
    if "x_embedder.proj.weight" not in tensors:
        raise InputError(f"{path} holds no PixArt network: no x_embedder.proj.weight among its {len(tensors)} tensors")
    arguments = {name: value for name, value in settings.items() if name != PREDICTION_TYPE}
    architecture = check_architecture({**infer_architecture(tensors, path), **arguments}, path)
    if "pos_embed" not in tensors:  # the diffusers layout computes it
        tensors["pos_embed"] = position_grid(architecture).to(tensors["x_embedder.proj.weight"].dtype)
    return Weights(tensors, architecture, settings)


def load_into(model: PixArt, weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Load strictly. Raises InputError naming the tensors that are missing, unknown, or of another shape."""
    check_fit(model.state_dict(), weights, source)
    model.load_state_dict(weights)


def check_fit(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Hold names and shapes of weights against a network's own. Raises InputError naming those that differ."""
    missing = sorted(own.keys() - weights.keys())
    unknown = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    complaints = [
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if complaints:
        raise InputError(f"{source} is of another architecture than the network ({'; '.join(complaints)})")


def check_told(
    told: Mapping[str, Any], model: PixArt, prediction_type: str, source: str | Path, but: Container[str] = ()
) -> None:
    """Hold what a file tells of its network, where it does, against the one it is for, `but` for some arguments.

    Tensors alone show neither the heads, nor where the positions came from, nor what is predicted: weights that do
    not tell predict noise, as the released ones. Raises InputError naming the first difference.
    """
    own = {**architecture_of(model), PREDICTION_TYPE: prediction_type}
    for name, value in {PREDICTION_TYPE: "epsilon", **told}.items():
        if name not in but and own.get(name, value) != value:
            raise InputError(
                f"{source} is of another architecture than the network ({name} {value} instead of {own[name]})"
            )


def save_diffusers(model: PixArt, folder: str | Path, prediction_type: str = "epsilon") -> None:
    """Write config.json and diffusion_pytorch_model.safetensors, as the released PixCell-256 and -1024 have them.

    Of velocities the released layout knows nothing: for prediction_type v_prediction config.json gets a key of its own.
    The folder appears whole or not at all. Raises InputError when it is already there, or when the network's positions
    are not those of its size, which the layout could not bring back.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} is already there; name a new folder")
    own = model.state_dict()
    grid = position_grid(architecture_of(model)).to(own["x_embedder.proj.weight"])
    if grid.dtype != own["pos_embed"].dtype or not torch.equal(own["pos_embed"], grid):
        raise InputError(
            "pos_embed is not the grid of its size in the type of the weights, and the diffusers layout stores none; "
            "write another format"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in to_diffusers(own).items()}
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file(tensors, aside / DIFFUSERS_WEIGHTS, metadata={"format": "pt"})
        config = diffusers_config(model, prediction_type)
        (aside / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        aside.chmod(0o755)
        os.replace(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def save_official(model: PixArt, path: str | Path, prediction_type: str = "epsilon") -> None:
    """Write a torch file with the official names under `state_dict`, and beside it what tensors do not show."""
    with written_aside(_new_file(path)) as temporary:
        told = {"architecture": architecture_of(model), PREDICTION_TYPE: prediction_type}
        torch.save({"state_dict": model.state_dict(), **told}, temporary)


def save_safetensors(model: PixArt, path: str | Path, prediction_type: str = "epsilon") -> None:
    """Write the official names as safetensors, with what tensors do not show as JSON in the metadata."""
    from safetensors.torch import save_file

    with written_aside(_new_file(path)) as temporary:
        told = json.dumps({**architecture_of(model), PREDICTION_TYPE: prediction_type})
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, temporary, metadata={"format": "pt", TOLD: told})


def _new_file(path: str | Path) -> Path:
    if Path(path).exists():
        raise InputError(f"{path} is already there; name a new file")
    return Path(path)


def _read_folder(folder: Path, ema: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if (folder / "model_index.json").is_file():  # a whole pipeline
        folder = folder / "transformer"
    if (folder / "config.json").is_file():
        return read_safetensors(folder / DIFFUSERS_WEIGHTS), _diffusers_settings(folder / "config.json")
    wanted = "last_ema.ckpt" if ema else "step_*.ckpt"
    found = sorted(path for place in (folder, folder / "checkpoints") for path in place.glob(wanted))
    if not found:
        raise MissingError(f"no weights in {folder}: looked for config.json with {DIFFUSERS_WEIGHTS}, and for {wanted}")
    return _read_checkpoint(max(found, key=lambda path: path.name), ema)


def _diffusers_settings(path: Path) -> dict[str, Any]:
    """What a config.json of the released layout says of the architecture beyond the tensors."""
    if not path.is_file():
        raise MissingError(f"no {path}, which says what the tensors beside it are")
    try:
        settings = json.loads(path.read_text())
        if settings["_class_name"] != DIFFUSERS_CLASS:
            raise InputError(f"{path} is the config of a {settings['_class_name']}: expected a {DIFFUSERS_CLASS}")
        return {
            "input_size": settings["sample_size"],
            "num_heads": settings["num_attention_heads"],
            "pe_interpolation": settings["interpolation_scale"],
            **({PREDICTION_TYPE: settings[PREDICTION_TYPE]} if PREDICTION_TYPE in settings else {}),
        }
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the config of a {DIFFUSERS_CLASS} ({error!r})") from None


def _read_checkpoint(path: Path, ema: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A torch file's network, and what the trainer of this project wrote beside it about that."""
    content = read_torch_file(path)
    told = told_by(content) if isinstance(content, Mapping) else {}
    return _state_dict_of(content, path, ema), told


def _told_by_safetensors(path: Path) -> dict[str, Any]:
    """What save_safetensors noted of a file's network; nothing in files of others."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        noted = (file.metadata() or {}).get(TOLD)
    try:
        return dict(json.loads(noted)) if noted else {}
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: the note on its network is damaged ({error})") from None


def told_by(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of this project says of its network."""
    architecture = checkpoint.get("architecture")
    told = dict(architecture) if isinstance(architecture, Mapping) else {}
    return told | {name: checkpoint[name] for name in (PREDICTION_TYPE,) if name in checkpoint}


def _state_dict_of(content: Any, path: Path, ema: bool) -> dict[str, torch.Tensor]:
    """The network's tensors in a torch file: under `ema` or `model` in ours, under `state_dict` in released ones, or bare."""
    if isinstance(content, Mapping):
        if not ema and "architecture" in content and "model" not in content:
            raise InputError(f"{path} holds averaged weights only; the weights themselves are in a step_<n>.ckpt")
        keys = [key for key in ("ema" if ema else "model", "state_dict") if isinstance(content.get(key), Mapping)]
        content = content[keys[0]] if keys else content
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(
            f"{path} holds no state dict: expected tensors by name, at the top or under state_dict, ema or model"
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
