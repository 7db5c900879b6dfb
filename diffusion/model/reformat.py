"""From one format of weights to another: the very tensors, whatever the type of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusion.formats import TORCH_SUFFIXES
from diffusion.model.controlnet import load_controlnet, save_controlnet
from diffusion.model.convert import load_weights, save_diffusers, save_official, save_safetensors
from diffusion.model.flow import load_flow, save_flow
from diffusion.model.lora import convert_lora
from diffusion.model.matching import check_fit
from diffusion.model.pixart import PixArt
from diffusion.utils.errors import InputError

WRITERS = {"official": save_official, "safetensors": save_safetensors, "diffusers": save_diffusers}
ADDITIONS = ("controlnet", "lora", "flow")  # what is beside a network
SUFFIXES = {  # a folder has none
    "official": TORCH_SUFFIXES,
    "safetensors": (".safetensors",),
    "flow": (".safetensors",),
    **dict.fromkeys(("diffusers", "controlnet", "lora"), ()),
}


def check_target(target: Path, kind: str) -> None:
    """Raise InputError when a name is not one for the format."""
    own = SUFFIXES[kind]
    foreign = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes} - set(own)
    if target.suffix not in own if own else target.suffix in foreign:
        wanted = f"a {' or '.join(own)} file" if own else "a folder"
        raise InputError(f"{target}: --to {kind} writes {wanted}; name one")


def convert_addition(source: Path, target: Path, kind: str, ema: bool = True) -> str:
    """Write a ControlNet or an adapter, of a run or a file, as the folder that is released, or a flow as a file; return what it is.

    Raises MissingError, and InputError for weights of another kind.
    """
    if kind == "lora":
        count, settings = convert_lora(source, target, ema)
        return f"{count / 1e6:.2f} M values, rank {settings.rank}, alpha {settings.alpha:g}, of {', '.join(settings.targets)}"
    if kind == "flow":
        flow = load_flow(source, ema)
        save_flow(flow, target)
        return f"{sum(parameter.numel() for parameter in flow.parameters()) / 1e6:.2f} M values, {flow.config.depth} blocks"
    controlnet = load_controlnet(source, ema)
    save_controlnet(controlnet, target)
    count = sum(parameter.numel() for parameter in controlnet.parameters())
    return f"{count / 1e6:.2f} M values, {controlnet.config.depth} blocks of width {controlnet.config.hidden_size}"


def convert_weights(
    source: Path, target: Path, kind: str, ema: bool = True, num_heads: int | None = None
) -> tuple[int, dict[str, Any]]:
    """Write weights in another format, and return how many values they have, and their network's architecture.

    kind: of WRITERS. ema: of a checkpoint that holds both, the averaged ones. num_heads: where the source does not say it.
    Raises InputError for weights that do not fit what they say of themselves, MissingError for none.
    """
    weights = load_weights(source, ema=ema)
    architecture = dict(weights.architecture)
    if num_heads is not None:
        if weights.metadata.get("num_heads", num_heads) != num_heads:
            raise InputError(f"{source} says that it has {weights.metadata['num_heads']} heads, not {num_heads}")
        architecture["num_heads"] = num_heads
    if "num_heads" not in architecture:
        width = architecture["hidden_size"]
        raise InputError(f"{source} does not say how many heads attention has (width {width}); give --num-heads")
    model = PixArt(**architecture)
    check_fit(model.state_dict(), weights.state_dict, source)
    model.load_state_dict(weights.state_dict, assign=True)
    model.student = weights.student
    WRITERS[kind](model, target, weights.prediction_type)
    return sum(tensor.numel() for tensor in weights.state_dict.values()), architecture
