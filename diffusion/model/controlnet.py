"""ControlNet: a copy of a network's first blocks that reads an image beside the noisy latents and steers the network by it.

After Zhang et al. 2023 (Adding conditional control to text-to-image diffusion models), in the form that PixCell has
released as `PixCellControlNet`: the tokens behind each block, through a linear map that begins at zero, are added to the
tokens behind the same block of the network, whose weights stay as they are.
Letters: B batch, C latent channels, K control channels, h w sides of the latents, N image tokens, L condition tokens,
D their width, W width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from diffusion.formats import DIFFUSERS_WEIGHTS, LAST_WEIGHTS, LATENT_FACTOR
from diffusion.model.architecture import COND_POSITIONS, infer_architecture
from diffusion.model.diffusers_layout import diffusers_config, from_diffusers, to_diffusers
from diffusion.model.embed import PatchEmbed
from diffusion.model.matching import add_positions, check_fit
from diffusion.model.pixart import PixArt
from diffusion.model.pixart_config import PixArtConfig
from diffusion.model.trunk import Trunk
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import read_json
from diffusion.utils.values import Distinct, MaskKind, Name, Range
from diffusion.utils.weights import find_weights, read_safetensors, read_weights

CONTROLNET_CLASS = "PixCellControlNet"
ARCHITECTURE = "controlnet"  # key of checkpoints under which its arguments are
CONTROL_MAPS, MASK_KIND = "control_maps", "control_mask_kind"  # keys that the released class does not have
# official name -> diffusers name, of what a network does not have; maps that begin at zero, one behind every block
CONTROL_EMBEDDER, PROJECTIONS = ("control_embedder.proj", "cond_pos_embed.proj"), ("projections", "controlnet_blocks")
OLD_PREFIX = "transformer."  # of the first released class, which wrapped a whole network


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(PixArtConfig):
    """The arguments of a ControlNet: those of the network that it steers, of whose blocks it has the first `depth`.

    base_depth: blocks of that network. maps: names of the channels of the control image, such as nuclei; without any the
    control is the latents of an image, as released. mask_kind: what the values of masks are that maps are made of.
    Raises InputError for values out of their range, and for more blocks than the network has.
    """

    PREFIX: ClassVar[str] = "ControlNet's "

    base_depth: Annotated[int, Range(least=1, most=1024)] = 28
    maps: Annotated[tuple[Name, ...], Distinct()] = ()
    mask_kind: MaskKind = "binary"

    def check(self) -> None:
        super().check()
        if self.depth > self.base_depth:
            raise InputError(f"a ControlNet of {self.depth} blocks: the network that it steers has {self.base_depth}")

    @property
    def control_channels(self) -> int:
        """Channels of the control: those of latents, or all pixels of a latent's cell in every map."""
        return len(self.maps) * LATENT_FACTOR**2 if self.maps else self.in_channels


class ControlNet(Trunk):
    """The network beside a network: it returns what is added to the tokens behind each of the other's first blocks.

    Every tensor of a network is there, under the same name; the final layer is never used, as in the released files.
    """

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig):
        super().__init__(config)
        width = config.hidden_size
        self.control_embedder = PatchEmbed(config.patch_size, config.control_channels, width)
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        for module in (self.control_embedder.proj, *self.projections):
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.final_layer.requires_grad_(False)

    @staticmethod
    def of(
        base: PixArt,
        blocks: int | None = None,
        maps: tuple[str, ...] = (),
        mask_kind: MaskKind = "binary",
        copy_embedder: bool = False,
    ) -> ControlNet:
        """Return a ControlNet that begins as a copy of a network's first blocks; None: all but the last, as released.

        maps, mask_kind: as in ControlNetConfig. copy_embedder: embed latents that control as the network embeds its own, instead of
        from zero. Raises InputError for more blocks than there are.
        """
        depth = max(1, base.config.depth - 1) if blocks is None else blocks
        arguments = {**base.config.to_dict(), "depth": depth, "base_depth": base.config.depth}
        arguments |= {"maps": maps, "mask_kind": mask_kind, "use_target_timestep": False}
        controlnet = ControlNet(ControlNetConfig(**arguments))
        own, copied = controlnet.state_dict(), base.state_dict()
        controlnet.load_state_dict({**own, **{name: copied[name] for name in own if name in copied}})
        if copy_embedder:
            controlnet.control_embedder.load_state_dict(controlnet.x_embedder.state_dict())
        return controlnet

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor,
        control: torch.Tensor,
        dropped: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Return the residuals (B, N, W) of each block, for the inputs of PixArt and a control (B, K, h, w).

        y: condition tokens (B, L, D); dropped: as PixArt takes it. Raises ValueError for inputs of other shapes.
        """
        expected = (len(x), self.config.control_channels, *x.shape[2:])
        if control.shape != expected:
            raise ValueError(f"control of shape {tuple(control.shape)}: expected {expected}")
        inputs = self.embed(x, timestep, y, dropped)
        rows, columns = x.shape[2] // self.config.patch_size, x.shape[3] // self.config.patch_size
        # the released class embeds the control with the positions a second time
        tokens = inputs.x + (self.control_embedder(control) + self.positions(rows, columns))
        residuals = []
        for number, projection in enumerate(self.projections):
            tokens = self.run_block(number, tokens, inputs)
            residuals.append(projection(tokens))
        return residuals


UNSHARED = ("depth", "maps", "mask_kind", "use_target_timestep")  # a ControlNet of the teacher steers its students


def check_control_fits(controlnet: PixArtConfig, base: PixArtConfig) -> None:
    """Raise InputError naming the first argument in which a ControlNet's network is not the one that it is to steer."""
    theirs = base.to_dict()
    theirs["base_depth"] = theirs["depth"]
    for name, value in controlnet.to_dict().items():
        if name in PixArtConfig.TRAINING_ONLY or name in UNSHARED or theirs[name] == value:
            continue
        raise InputError(f"the ControlNet is of another network ({name} {value} instead of {theirs[name]})")


def load_controlnet(path: str | Path, ema: bool = True) -> ControlNet:
    """Read a ControlNet: a folder with config.json and safetensors, as released; a pipeline's folder that has one; a run that
    trained one, or a checkpoint of it.

    ema: of a checkpoint that holds both, take the averaged weights. Raises MissingError, and InputError for a file that is
    damaged or of another network.
    """
    folder = Path(path)
    if (folder / LAST_WEIGHTS).is_file() or folder.is_file():
        return _load_checkpoint(folder if folder.is_file() else folder / LAST_WEIGHTS, ema)
    folder = folder / "controlnet" if (folder / "controlnet").is_dir() else folder
    file = find_weights(folder) if folder.is_dir() else None
    if file is None:
        raise MissingError(f"no ControlNet in {folder}: expected config.json and {DIFFUSERS_WEIGHTS}")
    weights = _official_names(read_safetensors(file), file)
    controlnet = ControlNet(_read_config(folder / "config.json", weights, file))
    load_controlnet_weights(controlnet, weights, file)
    return controlnet.eval()


def _load_checkpoint(path: Path, ema: bool) -> ControlNet:
    content = read_weights(path).content
    arguments = content.get(ARCHITECTURE) if isinstance(content, Mapping) else None
    if not isinstance(arguments, Mapping):
        raise InputError(f"{path} holds no ControlNet: expected a checkpoint of the task control, or a released folder")
    parts = ("state_dict", "ema", "model") if ema else ("model",)
    weights = next((content[part] for part in parts if part in content), None)
    if weights is None:
        raise InputError(f"{path} holds averaged weights only; the weights themselves are in a step_<n>.ckpt")
    controlnet = ControlNet(ControlNetConfig(**arguments))
    load_controlnet_weights(controlnet, weights, path)
    return controlnet.eval()


def load_controlnet_weights(controlnet: ControlNet, weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Load weights in official names strictly, but for positions. Raises InputError naming the tensors that differ."""
    weights = add_positions(controlnet, weights)
    check_fit(controlnet.state_dict(), weights, source)
    controlnet.load_state_dict(weights)


def save_controlnet(controlnet: ControlNet, folder: str | Path) -> None:
    """Write config.json and diffusion_pytorch_model.safetensors as the released ControlNet has them.

    The folder appears complete or not at all. Raises InputError when it is already there.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} is already there; name a new folder")
    state = controlnet.state_dict()
    own = {name: tensor for name, tensor in state.items() if name.startswith((CONTROL_EMBEDDER[0], PROJECTIONS[0]))}
    tensors = to_diffusers({name: tensor for name, tensor in state.items() if name not in own})
    tensors |= {_rename(name): tensor for name, tensor in own.items()}
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary / DIFFUSERS_WEIGHTS, metadata={"format": "pt"})
        config = json.dumps(controlnet_layout(controlnet.config), indent=2, sort_keys=True)
        (temporary / "config.json").write_text(f"{config}\n", encoding="utf-8")


def controlnet_layout(config: ControlNetConfig) -> dict[str, Any]:
    """Return the config.json of a ControlNet, with the keys of the released one; maps get a key of their own."""
    return {
        **diffusers_config(dataclasses.replace(config, depth=config.base_depth)),
        "_class_name": CONTROLNET_CLASS,
        "num_layers": config.base_depth,
        "n_controlnet_blocks": config.depth,
        **({CONTROL_MAPS: list(config.maps), MASK_KIND: config.mask_kind} if config.maps else {}),
    }


def _official_names(tensors: Mapping[str, torch.Tensor], source: Path) -> dict[str, torch.Tensor]:
    """Return tensors of the released layout under official names, without the prefix of its first version."""
    if all(name.startswith((OLD_PREFIX, CONTROL_EMBEDDER[1], PROJECTIONS[1])) for name in tensors):
        tensors = {name.removeprefix(OLD_PREFIX): tensor for name, tensor in tensors.items()}
    own = {name: tensor for name, tensor in tensors.items() if name.startswith((CONTROL_EMBEDDER[1], PROJECTIONS[1]))}
    try:
        shared = from_diffusers({name: tensor for name, tensor in tensors.items() if name not in own})
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    shared.pop("pos_embed", None)  # computed, as the released files leave it out
    return shared | {_rename(name, back=True): part for name, part in own.items()}


def _rename(name: str, back: bool = False) -> str:
    """Return a tensor's name in the released layout for an official one of what networks do not have; back: the other way."""
    for official, released in (CONTROL_EMBEDDER, PROJECTIONS):
        old, new = (released, official) if back else (official, released)
        if name.startswith(f"{old}."):
            return f"{new}{name.removeprefix(old)}"
    raise ValueError(name)


def _read_config(path: Path, weights: Mapping[str, torch.Tensor], source: Path) -> ControlNetConfig:
    """Return what a config.json says, and the shapes of the weights beside it, in official names. Raises MissingError, InputError."""
    if not path.is_file():
        raise MissingError(f"no {path}, which says what the tensors beside it are")
    settings = read_json(path)
    kind = settings.get("_class_name")
    if kind != CONTROLNET_CLASS:
        raise InputError(f"{path} is the config of a {kind}: expected a {CONTROLNET_CLASS}")
    try:
        return ControlNetConfig(
            **{
                **infer_architecture(weights, source),
                "input_size": settings["sample_size"],
                "num_heads": settings["num_attention_heads"],
                "pe_interpolation": settings["interpolation_scale"],
                "base_depth": settings["num_layers"],
                "maps": settings.get(CONTROL_MAPS, ()),
                "mask_kind": settings.get(MASK_KIND, "binary"),
                COND_POSITIONS: settings.get(COND_POSITIONS, settings["caption_num_tokens"] > 1),
            }
        )
    except KeyError as error:
        raise InputError(f"{path} is not the config of a {CONTROLNET_CLASS} ({error!r})") from None
