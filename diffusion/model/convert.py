"""Reading and writing the weights of PixArt, in every format they come in.

Nothing is ever unpickled: torch files are read with weights_only, everything else is safetensors.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from diffusion.formats import CHECKPOINT_PATTERN, CHECKPOINTS_DIR, DIFFUSERS_WEIGHTS, LAST_EMA, PIPELINE_INDEX
from diffusion.model.architecture import (
    COND_POSITIONS,
    PREDICTION_TYPE,
    has_cond_positions,
    infer_architecture,
    position_grid,
    published_positions,
    token_positions,
)
from diffusion.model.diffusers_layout import diffusers_config, from_diffusers, read_diffusers_config, to_diffusers
from diffusion.model.matching import POSITIONS, add_positions, check_metadata, load_into
from diffusion.model.pixart import PixArt, build_model
from diffusion.model.pixart_config import ARGUMENTS, PixArtConfig, check_arguments
from diffusion.model.student import STUDENT_KEY, Student, read_student
from diffusion.utils.assets import network_folder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.state_dicts import find_state_dict
from diffusion.utils.weights import StoredWeights, find_weights, is_safetensors, read_weights

log = logging.getLogger(__name__)

METADATA_KEY = "pixcell"  # under which a safetensors file of ours stores its network's config
ANCHOR, DIFFUSERS_ANCHOR = "x_embedder.proj.weight", "pos_embed.proj.weight"  # tensors that every network has
CONSTANTS = (*POSITIONS, "y_embedder.y_embedding", "caption_projection.uncond_embedding")  # which are never trained
# what a file must store for its tensors not to be looked at; older ones are of no student
SHAPING = frozenset(ARGUMENTS) - PixArtConfig.TRAINING_ONLY - {"use_target_timestep"}
NOT_ARGUMENTS = (PREDICTION_TYPE, STUDENT_KEY)  # of what files say of their network
FOREIGN_NETWORKS = {  # parts of names, and whose they are
    "lora": "a LoRA, which changes a network; give the network's own weights",
    "controlnet": "a ControlNet; give the network that it steers",
    ".control_embedder.": "a ControlNet; give the network that it steers",
    ".encoder.conv_in.": "an autoencoder, which belongs at --vae",
    ".cls_token": "an embedder of patches, which belongs at --encoder",
    ".patch_embed.": "an embedder of patches, which belongs at --encoder",
}


class Weights(NamedTuple):
    """A state dict in official names, the PixArt arguments that its file stores or its tensors show, and the metadata.

    metadata: what the file itself says: PixArt arguments, `prediction_type` and `student`; empty for released checkpoints.
    file: what was read of a folder.
    """

    state_dict: dict[str, torch.Tensor]
    architecture: dict[str, Any]
    metadata: dict[str, Any]
    file: Path | None = None

    @property
    def prediction_type(self) -> Literal["epsilon", "v_prediction"]:
        """Return what the network predicts: epsilon unless the file says v_prediction."""
        return self.metadata.get(PREDICTION_TYPE, "epsilon")

    @property
    def student(self) -> Student | None:
        """Return what the network was distilled for; None: it was not. Raises InputError for damaged metadata."""
        return read_student(self.metadata.get(STUDENT_KEY), self.file)


def load_weights(path: str | Path, ema: bool = True, positions: bool = True) -> Weights:
    """Read an official .ckpt/.pth, a checkpoint of this project (file or folder), .safetensors, or a diffusers folder.

    A network that comes with the package is named as in `assets.NETWORKS`.
    Shards and the names that wrappers give are read, too. ema: of a checkpoint that holds both, take the averaged
    weights. positions: compute those that the file lacks, as all published stages have them where it does not say;
    without, they are left out of the state dict, and what only they show of the architecture.
    Raises MissingError, or InputError for a file that is damaged, needs unpickling, or holds no PixArt.
    """
    path = network_folder(path)
    file = _find_file(path, ema) if path.is_dir() else path
    stored = read_weights(file)
    tensors, metadata = _select_network(stored, path, ema), _read_metadata(stored)
    is_diffusers = DIFFUSERS_ANCHOR in tensors
    if is_diffusers:
        metadata = metadata or read_diffusers_config(file.with_name("config.json"))
        tensors = _official_names(tensors, path)
    # how attention is computed is up to who opens the weights, not to who trained them
    arguments = {name: value for name, value in metadata.items() if name not in (*NOT_ARGUMENTS, "fp32_attention")}
    if not arguments.keys() >= SHAPING:  # a foreign file, whose tensors have to show it
        inferred = infer_architecture(tensors, path)
        if (is_diffusers or "pos_embed" not in tensors) and has_cond_positions(inferred):
            inferred[COND_POSITIONS] = True  # where nothing says otherwise
            if is_diffusers and COND_POSITIONS not in metadata:
                log.warning(
                    "%s has no y_pos_embed: the positions of its conditions are computed, as the released class does",
                    path,
                )
        arguments = inferred | arguments
    architecture = check_arguments(arguments, f"{path}: ")
    if positions:
        tensors, architecture = _with_positions(tensors, architecture, path)
    return Weights(tensors, architecture, metadata, file)


def load_network(
    source: str | Path, preset: str, arguments: Mapping[str, Any], prediction_type: str, ema: bool = True
) -> tuple[PixArt, Path]:
    """Build the network of a preset, load weights that must be its own, and return it with the file that they are from.

    Raises MissingError, InputError as `load_weights` does, and for weights of another network, or of a student.
    """
    weights = load_weights(source, ema, positions=False)
    if weights.student is not None:
        raise InputError(f"{source} is a student itself: expected the network that it was made of")
    model, file = build_model(preset, **arguments), weights.file or network_folder(source)
    check_metadata(weights.metadata, model, prediction_type, file)
    load_into(model, add_positions(model, weights.state_dict), file)
    return model, file


def save_diffusers(model: PixArt, folder: str | Path, prediction_type: str = "epsilon") -> None:
    """Write config.json and diffusion_pytorch_model.safetensors, as the released PixCell-256 and -1024 have them.

    The released layout has no prediction_type: for v_prediction config.json gets a key of its own. The folder appears
    complete or not at all. Raises InputError when it is already there, and for a network that the layout could not bring
    back: with layers that it has no names for, or positions that are not those of its size.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} is already there; name a new folder")
    own = model.state_dict()
    converted = to_diffusers(own)
    side = model.config.base_size
    grid = model.position_grid(side, side).to(own["x_embedder.proj.weight"])
    if grid.dtype != own["pos_embed"].dtype or not torch.equal(own["pos_embed"], grid):
        raise InputError(
            "pos_embed is not the grid of its size in the type of the weights, and the diffusers layout stores none; "
            "write another format"
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in converted.items()}
    config = {**diffusers_config(model.config, prediction_type), **_student_metadata(model)}
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / DIFFUSERS_WEIGHTS, metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_official(model: PixArt, path: str | Path, prediction_type: str = "epsilon") -> None:
    """Write a torch file with official names under `state_dict`, and beside it the network's config. Raises InputError."""
    with atomic_write(_new_file(path)) as temporary:
        metadata = {
            "architecture": model.config.to_dict(),
            PREDICTION_TYPE: prediction_type,
            **_student_metadata(model),
        }
        torch.save({"state_dict": model.state_dict(), **metadata}, temporary)


def save_safetensors(model: PixArt, path: str | Path, prediction_type: str = "epsilon") -> None:
    """Write official names as safetensors, with the network's config as JSON in the metadata. Raises InputError."""
    from safetensors.torch import save_file

    with atomic_write(_new_file(path)) as temporary:
        metadata = json.dumps({**model.config.to_dict(), PREDICTION_TYPE: prediction_type, **_student_metadata(model)})
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, temporary, metadata={"format": "pt", METADATA_KEY: metadata})


def _student_metadata(model: PixArt) -> dict[str, Any]:
    return {} if model.student is None else {STUDENT_KEY: model.student.to_dict()}


def _new_file(path: str | Path) -> Path:
    if Path(path).exists():
        raise InputError(f"{path} is already there; name a new file")
    return Path(path)


def _find_file(folder: Path, ema: bool) -> Path:
    """Return the weights file of a folder: of diffusers, of a pipeline, or of a run. Raises MissingError."""
    if (folder / PIPELINE_INDEX).is_file():  # a whole pipeline
        folder = folder / "transformer"
    elif not (folder / "config.json").is_file():
        parts = ("transformer_ema", "transformer") if ema else ("transformer",)  # of a state that accelerate saves
        folder = next((folder / part for part in parts if (folder / part / "config.json").is_file()), folder)
    found = find_weights(folder)
    if found is not None:
        return found
    if (folder / "config.json").is_file():
        raise MissingError(
            f"no weights at {folder / DIFFUSERS_WEIGHTS}; name a folder as diffusers writes it, or a weights file"
        )
    wanted = LAST_EMA if ema else CHECKPOINT_PATTERN
    for pattern in (wanted, "epoch_*_step_*.pth"):  # ours, and the original project's
        steps = [path for place in (folder, folder / CHECKPOINTS_DIR) for path in place.glob(pattern)]
        if steps:
            return max(steps, key=lambda path: (_step_of(path), path.name))
    raise MissingError(f"no weights in {folder}: looked for config.json with {DIFFUSERS_WEIGHTS}, and for {wanted}")


def _step_of(path: Path) -> int:
    match = re.search(r"step_(\d+)", path.name)
    return int(match[1]) if match else 0


def _select_network(stored: StoredWeights, path: Path, ema: bool) -> dict[str, torch.Tensor]:
    """Return a network's tensors. Raises InputError for averages where raw ones are asked for, and for other content."""
    content = stored.content
    ours = isinstance(content, Mapping) and isinstance(content.get("architecture"), Mapping)
    if not ema and ours and "model" not in content:
        raise InputError(f"{path} holds averaged weights only; the weights themselves are in a step_<n>.ckpt")
    advice = "--weights raw, of the commands that sample and of pixcell convert,"
    tensors = find_state_dict(content, path, (ANCHOR, DIFFUSERS_ANCHOR), ema, constants=CONSTANTS, advice=advice)
    kind = next((kind for part, kind in FOREIGN_NETWORKS.items() if any(part in f".{name}" for name in tensors)), "")
    if kind or not tensors.keys() & {ANCHOR, DIFFUSERS_ANCHOR}:
        raise InputError(
            f"{path} holds no PixArt network: "
            + (f"its tensors are those of {kind}" if kind else f"no {ANCHOR} among its {len(tensors)} tensors")
        )
    return tensors


def _official_names(tensors: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return tensors of the diffusers layout under official names. Raises InputError with their source."""
    try:
        return from_diffusers(tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except RuntimeError as error:  # of torch.cat
        raise InputError(f"{path}: queries, keys and values do not fit each other ({error})") from None


def _with_positions(
    tensors: dict[str, torch.Tensor], architecture: dict[str, Any], path: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Compute the positions that a state dict lacks. Raises InputError for an architecture that can have none."""
    grids = {"pos_embed": position_grid, **({"y_pos_embed": token_positions} if architecture[COND_POSITIONS] else {})}
    absent = [name for name in grids if name not in tensors]
    if not absent:
        return tensors, architecture
    assumed = published_positions(architecture, path)
    architecture = {**architecture, **assumed}
    try:
        computed = {name: grids[name](architecture).to(tensors[ANCHOR].dtype) for name in absent}
    except ValueError as error:
        raise InputError(f"{path} lacks {' and '.join(absent)}, which cannot be computed ({error})") from None
    if assumed:
        values = ", ".join(f"{name}={value:g}" for name, value in assumed.items())
        log.warning("%s lacks %s; computed as published networks have it: %s", path, " and ".join(absent), values)
    return tensors | computed, architecture


def _read_metadata(stored: StoredWeights) -> dict[str, Any]:
    """Return what a file of this project says of its network; nothing for foreign files."""
    if len(stored.files) == 1 and is_safetensors(stored.files[0]):
        return _read_safetensors_metadata(stored.files[0])
    return read_metadata(stored.content) if isinstance(stored.content, Mapping) else {}


def _read_safetensors_metadata(path: Path) -> dict[str, Any]:
    """Return what save_safetensors stored of a file's network; nothing for foreign files."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        stored = (file.metadata() or {}).get(METADATA_KEY)
    try:
        return dict(json.loads(stored)) if stored else {}
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: the note on its network is damaged ({error})") from None


def read_metadata(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint of this project says of its network."""
    architecture = checkpoint.get("architecture")
    metadata = dict(architecture) if isinstance(architecture, Mapping) else {}
    return metadata | {name: checkpoint[name] for name in NOT_ARGUMENTS if name in checkpoint}
