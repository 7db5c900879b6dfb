"""The arguments of PixArt, their ranges, and the presets of the published sizes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar

from diffusion.utils.errors import InputError
from diffusion.utils.values import Count, Positive, Range, Section, convert, type_hints

PRESETS: dict[str, dict[str, int]] = {
    "PixArt_XL_2_UNI": dict(depth=28, hidden_size=1152, num_heads=16),  # the published network, 608 M parameters
    "PixArt_L_2_UNI": dict(depth=24, hidden_size=1024, num_heads=16),
    "PixArt_B_2_UNI": dict(depth=12, hidden_size=768, num_heads=12),
    "PixArt_S_2_UNI": dict(depth=12, hidden_size=384, num_heads=6),
    "PixArt_Ti_2_UNI": dict(depth=6, hidden_size=192, num_heads=3),  # trains on a laptop's CPU
}


@dataclass(frozen=True)
class PixArtConfig(Section):
    """The arguments of a PixArt network. Networks keep theirs as `config`, and files store it as a plain dict.

    input_size: side of the training latents (32 for 256 pixels); pe_interpolation sets the scale of its position grid.
    model_max_length: condition tokens L, one per 256-pixel window; caption_channels: their width D.
    use_cond_pos_embed: give the tokens the positions of their windows (stages with L > 1).
    fp32_attention: attention outside autocast, in float32. use_target_timestep: the network is told the timestep that a jump ends
    at, as a student of trajectories is.
    Raises InputError for values out of their range, and for those that contradict each other.
    """

    PREFIX: ClassVar[str] = "PixArt's "
    TRAINING_ONLY: ClassVar[frozenset[str]] = frozenset({"class_dropout_prob", "fp32_attention"})  # shape no tensor

    input_size: Count = 32
    patch_size: Count = 2
    in_channels: Count = 16
    hidden_size: Count = 1152
    depth: Annotated[int, Range(least=1, most=1024)] = 28
    num_heads: Count = 16
    mlp_ratio: Positive = 4.0
    class_dropout_prob: Annotated[float, Range(least=0, most=1)] = 0.1
    pred_sigma: bool = True
    caption_channels: Count = 1536
    model_max_length: Count = 1
    pe_interpolation: Positive = 1.0
    use_cond_pos_embed: bool = False
    qk_norm: bool = False
    fp32_attention: bool = False
    use_target_timestep: bool = False

    def check(self) -> None:
        """Compare fields with each other. Raises InputError."""
        width, heads = self.hidden_size, self.num_heads
        if width % heads or width % 4:
            raise InputError(f"hidden_size {width} must be a multiple of num_heads {heads}, and of 4")
        if not 1 <= width * self.mlp_ratio < 2**24:
            raise InputError(f"mlp_ratio {self.mlp_ratio} makes {width * self.mlp_ratio:g} hidden units of {width}")
        if self.use_cond_pos_embed and self.caption_channels % 4:
            raise InputError(f"use_cond_pos_embed: caption_channels {self.caption_channels} must be a multiple of 4")
        if self.input_size % self.patch_size:
            raise InputError(f"input_size {self.input_size} must be a multiple of patch_size {self.patch_size}")

    @property
    def out_channels(self) -> int:
        """Channels of the output: with pred_sigma the variance's stand behind the noise's."""
        return self.in_channels * (2 if self.pred_sigma else 1)

    @property
    def base_size(self) -> int:
        """Image tokens along a side of the training latents."""
        return self.input_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        """Hidden units of a block's MLP."""
        return int(self.hidden_size * self.mlp_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as plain values, which checkpoints store as `architecture`."""
        return asdict(self)


ARGUMENTS = tuple(field.name for field in fields(PixArtConfig))


def check_arguments(arguments: Mapping[str, Any], prefix: str = PixArtConfig.PREFIX) -> dict[str, Any]:
    """Return PixArt arguments, which need not be all, each converted to its type and checked against its range.

    prefix: what messages put before an argument's name, such as the file that it comes from. Raises InputError, for an
    unknown argument with the nearest one.
    """
    hints = type_hints(PixArtConfig)
    for name in arguments:
        if name not in ARGUMENTS:
            nearest = difflib.get_close_matches(str(name), ARGUMENTS, n=1, cutoff=0)[0]
            raise InputError(f"{prefix}{name}: PixArt has no such argument; the nearest is {nearest!r}")
    return {name: convert(value, hints[name], f"{prefix}{name}") for name, value in arguments.items()}


def preset_config(name: str, arguments: Mapping[str, Any]) -> PixArtConfig:
    """Return the config of a preset, with arguments that win over its own. Raises InputError for unknown names and values."""
    if name not in PRESETS:
        raise InputError(f"no model preset {name!r}; known are {', '.join(PRESETS)}")
    return PixArtConfig(**check_arguments({**PRESETS[name], **arguments}))
