"""Weights of PixArt in every format they come in: read, written, and the architecture that they imply.

Nothing is ever unpickled: torch files are read with weights_only, everything else is safetensors.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffusion.errors import InputError, MissingError
from diffusion.files import written_aside
from diffusion.model.embed import grid_positions, sincos_2d
from diffusion.model.names import DIFFUSERS_CLASS, from_diffusers, to_diffusers
from diffusion.model.pixart import PRESETS, PixArt
from diffusion.weights import read_safetensors, read_torch_file

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TOLD = "pixcell"  # key of the metadata of safetensors files
PREDICTION_TYPE = "prediction_type"  # of checkpoints: epsilon or v_prediction


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
        tensors["pos_embed"] = _position_grid(architecture).to(tensors["x_embedder.proj.weight"].dtype)
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


def infer_architecture(tensors: Mapping[str, torch.Tensor], source: str | Path = "the weights") -> dict[str, Any]:
    """PixArt arguments from names and shapes. Raises InputError when a tensor needed for it is missing or odd.

    The heads leave no trace in the tensors: they are taken from the preset of that width, where there is one.
    pe_interpolation and input_size come from the position grid.
    """
    try:
        width, in_channels, patch_size, _ = tensors["x_embedder.proj.weight"].shape
        tokens, caption_channels = tensors["y_embedder.y_embedding"].shape
        outputs = tensors["final_layer.linear.weight"].shape[0] // patch_size**2
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        positions = _position_settings(tensors["pos_embed"], patch_size) if "pos_embed" in tensors else {}
    except KeyError as error:
        raise InputError(f"{source} holds no whole PixArt network: {error.args[0]} is missing") from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(
            f"{source} holds no PixArt network: its tensors have other names or shapes ({error})"
        ) from None
    architecture = {
        "patch_size": patch_size,
        "in_channels": in_channels,
        "hidden_size": width,
        "depth": depth,
        "mlp_ratio": hidden / width,
        "pred_sigma": outputs == 2 * in_channels,
        "caption_channels": caption_channels,
        "model_max_length": tokens,
        "use_cond_pos_embed": "y_pos_embed" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        **positions,
    }
    heads = {preset["hidden_size"]: preset["num_heads"] for preset in PRESETS.values()}
    if width in heads:
        architecture["num_heads"] = heads[width]
    return architecture


def check_architecture(architecture: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """The arguments themselves, if PixArt takes them: what a file tells may be anything. Raises InputError."""
    known = inspect.signature(PixArt).parameters
    for name, value in architecture.items():
        if name not in known:
            raise InputError(f"{source} tells of {name}, which is no argument of PixArt")
        kind = type(known[name].default)
        fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or 0 < value < math.inf)
        if not fits or (kind is not bool and isinstance(value, bool)):
            raise InputError(f"{source} tells of {name} {value!r}: expected a positive {kind.__name__}")
    return architecture


def architecture_of(model: PixArt) -> dict[str, Any]:
    """The PixArt arguments that would build this network again."""
    return {
        **infer_architecture(model.state_dict()),
        "input_size": model.base_size * model.patch_size,
        "num_heads": model.blocks[0].attn.heads,
        "pe_interpolation": model.pe_interpolation,
    }


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
    grid = _position_grid(architecture_of(model)).to(own["x_embedder.proj.weight"])
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


def diffusers_config(model: PixArt, prediction_type: str = "epsilon") -> dict[str, Any]:
    """The config.json of a network, with the keys of the released ones."""
    heads = model.blocks[0].attn.heads
    qk_norm = isinstance(model.blocks[0].attn.q_norm, torch.nn.LayerNorm)
    return {
        "_class_name": DIFFUSERS_CLASS,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": model.hidden_size // heads,
        "attention_type": "default",
        "caption_channels": model.caption_channels,
        "caption_num_tokens": model.model_max_length,
        "cross_attention_dim": model.hidden_size,
        "dropout": 0.0,
        "in_channels": model.in_channels,
        "interpolation_scale": model.pe_interpolation,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_attention_heads": heads,
        "num_embeds_ada_norm": 1000,
        "num_layers": len(model.blocks),
        "out_channels": model.out_channels,
        "patch_size": model.patch_size,
        "sample_size": model.base_size * model.patch_size,
        "upcast_attention": False,
        "use_additional_conditions": False,
        **({"qk_norm": "layer_norm_across_heads"} if qk_norm else {}),
        **({PREDICTION_TYPE: prediction_type} if prediction_type != "epsilon" else {}),
    }


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


def _position_settings(pos_embed: torch.Tensor, patch_size: int) -> dict[str, Any]:
    """input_size and pe_interpolation of a position grid (1, N, W): its second token is sin(1 / pe_interpolation) first."""
    side = round(pos_embed.shape[1] ** 0.5)
    settings: dict[str, Any] = {"input_size": side * patch_size}
    if side > 1:
        sine, cosine = pos_embed[0, 1, 0].double(), pos_embed[0, 1, pos_embed.shape[2] // 4].double()
        angle = torch.atan2(sine, cosine).item() % (2 * torch.pi)
        digits = 4 if pos_embed.dtype in (torch.float32, torch.float64) else 2  # half precision holds three
        settings["pe_interpolation"] = round(1 / angle, digits)
    return settings


def _position_grid(architecture: Mapping[str, Any]) -> torch.Tensor:
    """The (1, N, W) position grid of this architecture."""
    side = architecture["input_size"] // architecture["patch_size"]
    positions = grid_positions(side, side, architecture["pe_interpolation"])
    return sincos_2d(architecture["hidden_size"], positions, positions)[None]
