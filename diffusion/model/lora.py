"""Low-rank adapters (LoRA, Hu et al. 2021) of a network: added, counted, merged, and read and written.

Files are those of peft and diffusers: each of the maps that we keep in one tensor (queries, keys and values) has an adapter of
its own there, and here an adapter of a part of the tensor's rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from diffusion.formats import LAST_WEIGHTS
from diffusion.model.diffusers_layout import FUSED_IN_BLOCK, RENAMED_IN_BLOCK
from diffusion.model.jumps import TARGET_EMBEDDER, add_target_embedder
from diffusion.model.lora_linear import LoraLinear
from diffusion.model.matching import check_fit
from diffusion.model.pixart import PixArt
from diffusion.model.student import STUDENT_KEY, TRAJECTORY, Student, read_student
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import abbreviate, read_json
from diffusion.utils.weights import read_weights

LORA_FILE = "pytorch_lora_weights.safetensors"  # in an adapter's folder, as diffusers names it
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # and as peft does
PEFT_PREFIX = "base_model.model."
# names of the tensors that a file of an adapter alone has
ADAPTER_TENSOR = rf"\.lora(_|\.)|^({re.escape(PEFT_PREFIX)})?{TARGET_EMBEDDER}\."
METADATA_KEY = "lora_adapter_metadata"  # of the file: the settings as JSON, as diffusers writes them
CHECKPOINT_KEY = "lora"  # of a run's file of averaged weights: the same
BLOCKS = "transformer_blocks."
# what can be adapted, by the names of peft; whole names and these groups of them can be given as targets
GROUPS = {
    "cross_attention": ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    "self_attention": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
    "mlp": ("ff.net.0.proj", "ff.net.2"),
}
TARGETS = tuple(target for group in GROUPS.values() for target in group)


class Place(NamedTuple):
    """Where a map of the released layout is in a block: the module of ours, and which of its equal parts."""

    module: str
    part: int
    parts: int


PLACES = {
    **{new: Place(old, 0, 1) for old, new in RENAMED_IN_BLOCK.items() if new in TARGETS},
    **{new: Place(old, i, len(parts)) for old, parts in FUSED_IN_BLOCK.items() for i, new in enumerate(parts)},
}


@dataclass(frozen=True)
class LoraSettings:
    """The settings of an adapter: its rank, alpha (the scale is alpha / rank), and the maps of every block that it adapts."""

    rank: int = 4
    alpha: float = 4.0
    targets: tuple[str, ...] = GROUPS["cross_attention"]

    @staticmethod
    def of(rank: int, alpha: float | None = None, targets: Sequence[str] = ("cross_attention",)) -> LoraSettings:
        """Return settings for targets that are names of peft or of GROUPS; alpha: None for the rank. Raises InputError."""
        named = [each for target in targets for each in GROUPS.get(target, (target,))]
        unknown = [name for name in named if name not in TARGETS]
        if unknown:
            raise InputError(f"lora target {unknown[0]!r}: expected {', '.join((*GROUPS, *TARGETS))}")
        if rank < 1:
            raise InputError(f"lora rank {rank}: expected at least 1")
        ordered = tuple(name for name in TARGETS if name in named)
        return LoraSettings(rank, float(rank if alpha is None else alpha), ordered)

    @property
    def scale(self) -> float:
        """Return what the product of both maps is multiplied by."""
        return self.alpha / self.rank

    def describe(self) -> str:
        """Return the settings in words."""
        return f"rank {self.rank}, alpha {self.alpha:g}, targets {', '.join(self.targets)}"


def add_lora(network: PixArt, settings: LoraSettings, name: str = "default", scale: float = 1.0) -> None:
    """Add a new adapter to a network, which changes nothing at first. Raises InputError for a name that is there."""
    _check_new(network, name)
    for number in range(network.config.depth):
        for target in settings.targets:
            place, linear = _linear(network, number, target)
            linear.add(name, place.part, settings.rank, scale * settings.scale)
    adapter_settings(network)[name] = settings


def load_lora(
    network: PixArt,
    path: str | Path,
    scale: float = 1.0,
    name: str | None = None,
    alpha: float | None = None,
    ema: bool = True,
) -> str:
    """Add an adapter: a file or folder of peft or diffusers, a whole network with adapters, as released, or a run that trained one.

    name: None for that of the file or its folder. alpha: where the file does not say it; None: the rank, a scale of 1. ema: of a
    checkpoint that holds both, take the averaged weights.
    Returns the name. Raises MissingError, and InputError for a file that is damaged, without adapters, or of another network,
    naming the first tensor that differs.
    """
    source = Path(path)
    file = _find_adapter(source)
    stored = read_weights(file).content
    tensors = _adapter_tensors(stored, file, ema)
    metadata = read_lora_metadata(file, stored)
    chosen = _settings_of(tensors, metadata, file, alpha)
    own = name or (source.name if source.is_dir() else source.stem).replace(".", "_")
    _check_tensors(network, tensors, file)
    _check_new(network, own)
    student = read_student(metadata.get(STUDENT_KEY), file)
    if student is not None:
        _become_student(network, student, _stored_student_tensors(stored, ema), scale, file)
        network.student_adapter = own
    for number, target in sorted({(number, target) for number, target, _ in tensors}):
        place, linear = _linear(network, number, target)
        adapter = linear.add(own, place.part, chosen.rank, scale * chosen.scale)
        with torch.no_grad():
            adapter.A.copy_(tensors[number, target, "A"])
            adapter.B.copy_(tensors[number, target, "B"])
    adapter_settings(network)[own] = chosen
    return own


def save_lora(network: PixArt, folder: str | Path, name: str | None = None) -> None:
    """Write an adapter into a folder as diffusers does, and beside it as peft does; name: None for the only one.

    Raises InputError for a folder that is already there, or an adapter that is not.
    """
    own = _one_name(network, name)
    metadata = lora_metadata(adapter_settings(network)[own])
    beside: dict[str, torch.Tensor] = {}
    if network.student is not None and network.student_adapter == own:
        metadata[STUDENT_KEY], beside = network.student.to_dict(), student_tensors(network.state_dict())
    _write_adapter({**lora_tensors(network, own), **beside}, metadata, Path(folder))


def convert_lora(source: str | Path, folder: str | Path, ema: bool = True) -> tuple[int, LoraSettings]:
    """Write the adapter of a run, or of a file that `load_lora` reads, as `save_lora` does; return its values and settings.

    Raises MissingError, InputError.
    """
    file = _find_adapter(Path(source))
    stored = read_weights(file).content
    tensors = _adapter_tensors(stored, file, ema)
    metadata = read_lora_metadata(file, stored)
    settings = _settings_of(tensors, metadata, file)
    student = {name: metadata[name] for name in (STUDENT_KEY,) if name in metadata}
    named = {
        f"{BLOCKS}{number}.{target}.lora_{letter}.weight": each for (number, target, letter), each in tensors.items()
    }
    named |= _stored_student_tensors(stored, ema)
    _write_adapter(named, {**lora_metadata(settings), **student}, Path(folder))
    return sum(tensor.numel() for tensor in named.values()), settings


def _write_adapter(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    if folder.exists():
        raise InputError(f"{folder} is already there; name a new folder")
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        save_file(whole, temporary / LORA_FILE, metadata={"format": "pt", METADATA_KEY: json.dumps(metadata)})
        prefixed = {f"{PEFT_PREFIX}{key}": tensor for key, tensor in whole.items()}
        save_file(prefixed, temporary / PEFT_FILE, metadata={"format": "pt"})
        (temporary / PEFT_CONFIG).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def lora_tensors(network: PixArt, name: str | None = None) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by the names of peft and diffusers; name: None for the only one."""
    own = _one_name(network, name)
    return rename_lora({key: tensor for key, tensor in network.state_dict().items() if f".adapters.{own}." in key})


def rename_lora(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter, of a network's state dict, by the names of peft and diffusers; others are left out."""
    targets = {(place.module, place.part): target for target, place in PLACES.items()}
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.adapters\.[^.]+\.(\d+)\.(A|B)", name)
        if match is not None:
            target = targets[match[2], int(match[3])]
            found[f"{BLOCKS}{match[1]}.{target}.lora_{match[4]}.weight"] = tensor
    return found


def student_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what a student of jumps has beside its adapter, of a network's state dict: the embedding of target times."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"{TARGET_EMBEDDER}.")}


def _stored_student_tensors(content: Any, ema: bool) -> dict[str, torch.Tensor]:
    """Return the same, of a file of an adapter, as a run, diffusers or peft names its tensors."""
    part = _choose_part(content, ema)
    return student_tensors({str(name).removeprefix(PEFT_PREFIX): tensor for name, tensor in part.items()})


def _become_student(
    network: PixArt, student: Student, tensors: Mapping[str, torch.Tensor], scale: float, file: Path
) -> None:
    """Make a network the student that an adapter makes of it. Raises InputError for one that cannot be."""
    if scale != 1:
        raise InputError(f"{file} makes the network a student, and {scale:g} times it none: leave the scale out")
    if network.student is not None:
        raise InputError(f"{file} makes the network a student, and it is one already")
    if student.method == TRAJECTORY:
        if not tensors:
            raise InputError(
                f"{file} makes the network a student of jumps, without its {TARGET_EMBEDDER}: it is damaged"
            )
        add_target_embedder(network)
        own = student_tensors(network.state_dict())
        check_fit(own, tensors, file)
        network.load_state_dict(dict(tensors), strict=False)
    network.student = student


def lora_metadata(settings: LoraSettings) -> dict[str, Any]:
    """Return what a file says of its adapter, as peft names it."""
    return {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "target_modules": list(settings.targets),
        "peft_type": "LORA",
        "bias": "none",
        "lora_dropout": 0.0,
    }


def set_lora_scales(network: PixArt, scales: Mapping[str, float]) -> None:
    """Set how much each adapter named counts; 0: not at all. Merged ones are merged again. Raises InputError for others."""
    known = adapter_settings(network)
    for name, scale in scales.items():
        if name not in known:
            raise InputError(f"no adapter {name!r}; there are {', '.join(known) or 'none'}")
        if name == network.student_adapter and scale != 1:
            raise InputError(f"{name} makes the network a student, and {scale:g} times it none: leave its scale at 1")
        for linear in _lora_linears(network):
            if name in linear.scales:
                linear.scales[name] = scale * known[name].scale
    for linear in _lora_linears(network):
        if linear.is_merged:
            linear.merge()


def merge_lora(network: PixArt) -> None:
    """Add all adapters to the weights, at the scales that they have: as fast as without, and exact to rounding."""
    for linear in _lora_linears(network):
        linear.merge()


def merged_state(network: PixArt) -> dict[str, torch.Tensor]:
    """Return a network's tensors with its adapters added for good: those of a network without adapters."""
    merge_lora(network)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items() if ".adapters." not in name}


def unmerge_lora(network: PixArt) -> None:
    """Give the weights back as they were, to the bit, with the adapters beside them."""
    for linear in _lora_linears(network):
        linear.unmerge()


def adapter_settings(network: PixArt) -> dict[str, LoraSettings]:
    """Return the settings of a network's adapters by name."""
    if not hasattr(network, "lora_settings"):
        network.lora_settings = {}  # type: ignore[assignment] - a plain attribute, which no state dict has
    return cast("dict[str, LoraSettings]", network.lora_settings)


def check_no_student(network: PixArt, source: str | Path) -> None:
    """Raise InputError where an adapter has made a network a student, which is only sampled, not trained on."""
    if network.student is not None:
        raise InputError(f"{source} makes the network a student: expected an adapter that it is trained with")


def is_adapter(path: str | Path) -> bool:
    """Tell whether a file or folder is that of an adapter alone: of peft, of diffusers, or of a run that trained one."""
    try:
        content = read_weights(_find_adapter(Path(path))).content
    except InputError:  # no such file, or none of weights
        return False
    return isinstance(content, Mapping) and (
        isinstance(content.get(CHECKPOINT_KEY), Mapping)
        or (len(content) > 0 and all(re.search(ADAPTER_TENSOR, str(name)) for name in content))
    )


def read_lora_metadata(path: Path, content: Any) -> dict[str, Any]:
    """Return the settings that diffusers stores in a file, peft in adapter_config.json beside it, or a run in its checkpoint."""
    from safetensors import safe_open

    if isinstance(content, Mapping) and isinstance(content.get(CHECKPOINT_KEY), Mapping):
        return {**content[CHECKPOINT_KEY], **({STUDENT_KEY: content[STUDENT_KEY]} if STUDENT_KEY in content else {})}
    beside = path.with_name(PEFT_CONFIG)
    if beside.is_file():
        return read_json(beside, "settings of an adapter")
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    try:
        stored = json.loads(text) if text else {}
    except ValueError as error:
        raise InputError(f"{path}: the settings of its adapter are damaged ({error})") from None
    # of a pipeline, settings have the name of the network before them
    return {key.removeprefix("transformer."): value for key, value in stored.items()}


def _find_adapter(source: Path) -> Path:
    """Return the file of an adapter: the one named, or that of a run, of diffusers or of peft in a folder. Raises MissingError."""
    names = (LAST_WEIGHTS, LORA_FILE, PEFT_FILE)
    file = (
        source / next((each for each in names if (source / each).is_file()), LORA_FILE) if source.is_dir() else source
    )
    if not file.is_file():
        raise MissingError(f"no adapter at {file}; name a file of adapters, or a folder with {LORA_FILE}")
    return file


def _settings_of(
    tensors: Mapping[tuple[int, str, str], torch.Tensor],
    metadata: Mapping[str, Any],
    file: Path,
    alpha: float | None = None,
) -> LoraSettings:
    """Return what tensors and metadata say of an adapter; alpha: where they do not. Raises InputError for several ranks."""
    ranks = sorted({tensor.shape[0] for (_, _, letter), tensor in tensors.items() if letter == "A"})
    if len(ranks) != 1:
        raise InputError(f"{file} has adapters of ranks {', '.join(map(str, ranks))}: expected one")
    targets = sorted({target for _, target, _ in tensors})
    return LoraSettings.of(ranks[0], metadata.get("lora_alpha", alpha), targets)


def _choose_part(content: Any, ema: bool) -> Mapping[str, Any]:
    """Return a file's tensors: of a checkpoint that holds both, the averaged or the raw ones."""
    content = content if isinstance(content, Mapping) else {}
    parts = ("state_dict", "ema", "model") if ema else ("model", "state_dict")
    return next((content[part] for part in parts if isinstance(content.get(part), Mapping)), content)


def _adapter_tensors(content: Any, file: Path, ema: bool) -> dict[tuple[int, str, str], torch.Tensor]:
    """Return the tensors of adapters by block, target and letter. Raises InputError for a file without any."""
    content = _choose_part(content, ema)
    content = {**content, **rename_lora(content)}  # of a run, names are ours
    pattern = re.compile(rf"(?:.*\.)?{re.escape(BLOCKS)}(\d+)\.(.+?)\.lora(?:_|\.)(A|B|down|up)(?:\.[^.]+)?\.weight")
    letters = {"down": "A", "up": "B"}
    found: dict[tuple[int, str, str], torch.Tensor] = {}
    for name, tensor in content.items():
        match = pattern.fullmatch(str(name))
        if match is not None and isinstance(tensor, torch.Tensor):
            found[int(match[1]), match[2], letters.get(match[3], match[3])] = tensor
    if not found:
        raise InputError(f"{file} holds no adapter: expected tensors such as {BLOCKS}0.attn2.to_q.lora_A.weight")
    for number, target, letter in list(found):
        other = "B" if letter == "A" else "A"
        if (number, target, other) not in found:
            raise InputError(f"{file} has lora_{letter} of {BLOCKS}{number}.{target}, and no lora_{other}")
    return found


def _check_tensors(network: PixArt, tensors: Mapping[tuple[int, str, str], torch.Tensor], file: Path) -> None:
    """Raise InputError naming the first tensor that is of another network."""
    for (number, target, letter), tensor in sorted(tensors.items(), key=lambda each: each[0]):
        name = f"{BLOCKS}{number}.{target}.lora_{letter}.weight"
        if number >= network.config.depth:
            raise InputError(
                f"{file} is of another network: it has {name}, and the network {network.config.depth} blocks"
            )
        if target not in PLACES:
            raise InputError(f"{file} is of another network: it has {name}; known maps are {abbreviate(TARGETS, 10)}")
        place = PLACES[target]
        linear = cast(nn.Linear, network.blocks[number].get_submodule(place.module))
        size = linear.in_features if letter == "A" else linear.out_features // place.parts
        rank = tensors[number, target, "A"].shape[0]
        if tensor.shape != ((rank, size) if letter == "A" else (size, rank)):
            raise InputError(
                f"{file} is of another network: {name} is {tuple(tensor.shape)}, and the network's map has {size} "
                f"{'inputs' if letter == 'A' else 'outputs'}, the adapter rank {rank}"
            )


def _linear(network: PixArt, number: int, target: str) -> tuple[Place, LoraLinear]:
    """Return where a target is, and the map of a block that adapters can be added to."""
    place, block = PLACES[target], network.blocks[number]
    linear = block.get_submodule(place.module)
    if not isinstance(linear, LoraLinear):
        linear = LoraLinear(cast(nn.Linear, linear), place.parts)
        parent, _, child = place.module.rpartition(".")
        setattr(block.get_submodule(parent), child, linear)
    return place, linear


def _lora_linears(network: PixArt) -> Iterator[LoraLinear]:
    return (module for module in network.modules() if isinstance(module, LoraLinear))


def _one_name(network: PixArt, name: str | None) -> str:
    known = adapter_settings(network)
    if name is None and len(known) == 1:
        return next(iter(known))
    if name is None or name not in known:
        raise InputError(f"no adapter {name!r}: the network has {', '.join(known) or 'none'}; name one of them")
    return name


def _check_new(network: PixArt, name: str) -> None:
    if any(linear.is_merged for linear in _lora_linears(network)):
        raise InputError("adapters are merged; unmerge_lora before another is added")
    if name in adapter_settings(network):
        raise InputError(f"there is an adapter {name!r} already; name this one otherwise")
    if "." in name or not name:
        raise InputError(f"an adapter cannot be named {name!r}: expected a name without dots")
