"""The layout of a diffusers folder, as PixCell is released: names of its tensors <-> official ones, and its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion.model.architecture import COND_POSITIONS, PREDICTION_TYPE
from diffusion.model.pixart_config import PixArtConfig
from diffusion.model.student import STUDENT_KEY
from diffusion.utils.content import recognise_placeholder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import read_json

DIFFUSERS_CLASS = "PixCellTransformer2DModel"
CONTROLLED_CLASS = "PixCellTransformer2DModelControlNet"  # the same weights, released beside a ControlNet

# official name -> diffusers name, for what is the same tensor in both
RENAMED = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "target_embedder.mlp.0": "adaln_single.emb.target_embedder.linear_1",  # of students, which are not released so
    "target_embedder.mlp.2": "adaln_single.emb.target_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "y_embedder.y_embedding": "caption_projection.uncond_embedding",
    "y_pos_embed": "y_pos_embed.y_pos_embed",
    "pos_embed": "pos_embed.pos_embed",  # read where diffusers has kept it, never written
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": "scale_shift_table",
}
RENAMED_IN_BLOCK = {
    "scale_shift_table": "scale_shift_table",
    "attn.proj": "attn1.to_out.0",
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.proj": "attn2.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
# one official tensor that is several in diffusers, in this order
FUSED_IN_BLOCK = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}


def to_diffusers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under diffusers names for official ones; without the position grid, which that layout computes.

    Raises InputError for a tensor that the layout has no place for, such as an adapter's.
    """
    converted = {}
    for name, tensor in tensors.items():
        if name == "pos_embed":
            continue
        block, inner, kind = _split_name(name, "blocks")
        if inner not in (RENAMED if block is None else RENAMED_IN_BLOCK | FUSED_IN_BLOCK):
            raise InputError(f"the layout of a {DIFFUSERS_CLASS} has no place for {name}; write another format")
        if inner in FUSED_IN_BLOCK:
            targets = FUSED_IN_BLOCK[inner]
            for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
                converted[f"transformer_blocks.{block}.{target}{kind}"] = part.clone()
        elif block is not None:
            converted[f"transformer_blocks.{block}.{RENAMED_IN_BLOCK[inner]}{kind}"] = tensor
        else:
            converted[RENAMED[inner] + kind] = tensor
    return converted


def from_diffusers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under official names for diffusers ones. Raises InputError for a name that the layout does not have."""
    back, back_in_block = ({new: old for old, new in table.items()} for table in (RENAMED, RENAMED_IN_BLOCK))
    parts_of = {part: fused for fused, parts in FUSED_IN_BLOCK.items() for part in parts}
    converted = {}
    for name, tensor in tensors.items():
        block, inner, kind = _split_name(name, "transformer_blocks")
        if block is not None and inner in parts_of:
            fused = parts_of[inner]
            names = [f"transformer_blocks.{block}.{part}{kind}" for part in FUSED_IN_BLOCK[fused]]
            absent = [part for part in names if part not in tensors]
            if absent:
                raise InputError(f"there is {name!r} but no {absent[0]!r}: the {DIFFUSERS_CLASS} is not whole")
            rows = [tensors[part] for part in names]
            converted[f"blocks.{block}.{fused}{kind}"] = torch.cat(rows)
        elif block is not None and inner in back_in_block:
            converted[f"blocks.{block}.{back_in_block[inner]}{kind}"] = tensor
        elif block is None and inner in back:
            converted[back[inner] + kind] = tensor
        else:
            raise InputError(f"{name!r} is no tensor of a {DIFFUSERS_CLASS}")
    return converted


def diffusers_config(config: PixArtConfig, prediction_type: str = "epsilon") -> dict[str, Any]:
    """Return the config.json of a network, with the keys of the released ones."""
    return {
        "_class_name": DIFFUSERS_CLASS,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "attention_type": "default",
        "caption_channels": config.caption_channels,
        "caption_num_tokens": config.model_max_length,
        "cross_attention_dim": config.hidden_size,
        "dropout": 0.0,
        "in_channels": config.in_channels,
        "interpolation_scale": config.pe_interpolation,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "norm_type": "ada_norm_single",
        "num_attention_heads": config.num_heads,
        "num_embeds_ada_norm": 1000,
        "num_layers": config.depth,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "sample_size": config.input_size,
        "upcast_attention": False,
        "use_additional_conditions": False,
        **({"qk_norm": "layer_norm_across_heads"} if config.qk_norm else {}),
        **({PREDICTION_TYPE: prediction_type} if prediction_type != "epsilon" else {}),
        # released networks have positions of conditions where there are several
        **({COND_POSITIONS: own} if (own := config.use_cond_pos_embed) != (config.model_max_length > 1) else {}),
    }


def read_diffusers_config(path: Path) -> dict[str, Any]:
    """Return the PixArt arguments, and the prediction_type, that a config.json says beyond what tensors show.

    Raises MissingError, and InputError for the config of another class.
    """
    if not path.is_file():
        raise MissingError(f"no {path}, which says what the tensors beside it are")
    placeholder = recognise_placeholder(path)
    if placeholder:
        raise InputError(f"{path} {placeholder}")
    try:
        settings = read_json(path)
    except InputError as error:
        raise InputError(f"{path} is not the config of a {DIFFUSERS_CLASS} ({error})") from None
    try:
        if settings["_class_name"] not in (DIFFUSERS_CLASS, CONTROLLED_CLASS):
            raise InputError(f"{path} is the config of a {settings['_class_name']}: expected a {DIFFUSERS_CLASS}")
        return {
            "input_size": settings["sample_size"],
            "num_heads": settings["num_attention_heads"],
            "pe_interpolation": settings["interpolation_scale"],
            **{key: settings[key] for key in (PREDICTION_TYPE, COND_POSITIONS, STUDENT_KEY) if key in settings},
        }
    except KeyError as error:
        raise InputError(f"{path} is not the config of a {DIFFUSERS_CLASS} ({error!r})") from None


def _split_name(name: str, blocks: str) -> tuple[str | None, str, str]:
    """Split `blocks.3.attn.qkv.weight` into (`3`, `attn.qkv`, `.weight`); the block is None for names outside them."""
    block, inner, kind = re.findall(rf"^(?:{blocks}\.(\d+)\.)?(.*?)(\.weight|\.bias)?$", name)[0]
    return block or None, inner, kind
