"""The architecture of foreign files, which do not store it: what their tensors show, and what all published networks have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion.formats import LATENT_FACTOR, WINDOW
from diffusion.model.embed import image_positions, token_grid
from diffusion.model.pixart_config import PRESETS
from diffusion.utils.errors import InputError

PREDICTION_TYPE = "prediction_type"  # of checkpoints: epsilon or v_prediction
COND_POSITIONS = "use_cond_pos_embed"
PUBLISHED_CELLS = WINDOW // LATENT_FACTOR  # side of a condition token's window in latents
PUBLISHED_SPAN = 64  # latents along a side for each unit of pe_interpolation: 512 pixels


def infer_architecture(tensors: Mapping[str, torch.Tensor], source: str | Path = "the weights") -> dict[str, Any]:
    """Return PixArt arguments read from names and shapes of tensors in official names.

    The heads leave no trace in the tensors: they are taken from the preset of that width, where there is one.
    pe_interpolation and input_size come from the position grid, where the file has it.
    Raises InputError when a tensor needed for it is missing or of another shape.
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
        "mlp_ratio": _mlp_ratio(width, hidden),
        "pred_sigma": outputs == 2 * in_channels,
        "caption_channels": caption_channels,
        "model_max_length": tokens,
        "use_cond_pos_embed": "y_pos_embed" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "use_target_timestep": "target_embedder.mlp.0.weight" in tensors,
        **positions,
    }
    heads = {preset["hidden_size"]: preset["num_heads"] for preset in PRESETS.values()}
    if width in heads:
        architecture["num_heads"] = heads[width]
    return architecture


def published_positions(architecture: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Return input_size and pe_interpolation as all published stages have them, each where the architecture lacks it.

    L condition tokens stand for sqrt(L) * 256 pixels a side, and pe_interpolation is that by 512. Raises InputError for
    an L that makes no square.
    """
    tokens = architecture["model_max_length"]
    side = math.isqrt(tokens)
    if "input_size" not in architecture and side**2 != tokens:
        raise InputError(f"{source} has no pos_embed, and does not say its input_size: {tokens} tokens make no square")
    size = architecture.get("input_size", side * PUBLISHED_CELLS)
    published = {"input_size": size, "pe_interpolation": size / PUBLISHED_SPAN}
    return {name: value for name, value in published.items() if name not in architecture}


def has_cond_positions(architecture: Mapping[str, Any]) -> bool:
    """Tell whether a published network of these tokens has positions for them: all with several tokens do."""
    tokens = architecture["model_max_length"]
    return tokens > 1 and math.isqrt(tokens) ** 2 == tokens and architecture["caption_channels"] % 4 == 0


def position_grid(architecture: Mapping[str, Any]) -> torch.Tensor:
    """Return the (1, N, W) position grid of this architecture."""
    side = architecture["input_size"] // architecture["patch_size"]
    return image_positions(architecture["hidden_size"], side, side, side, architecture["pe_interpolation"])


def token_positions(architecture: Mapping[str, Any]) -> torch.Tensor:
    """Return the (1, L, D) positions of the condition tokens of this architecture."""
    base = architecture["input_size"] // architecture["patch_size"]
    width, tokens = architecture["caption_channels"], architecture["model_max_length"]
    return token_grid(width, tokens, base, architecture["pe_interpolation"])


def _mlp_ratio(width: int, hidden: int) -> float:
    """Return a ratio whose product with the width truncates to the hidden units."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _position_settings(pos_embed: torch.Tensor, patch_size: int) -> dict[str, Any]:
    """Return input_size and pe_interpolation of a position grid (1, N, W), whose second token begins with sin(1 / pe_interpolation)."""
    side = round(pos_embed.shape[1] ** 0.5)
    settings: dict[str, Any] = {"input_size": side * patch_size}
    if side > 1:
        sine, cosine = pos_embed[0, 1, 0].double(), pos_embed[0, 1, pos_embed.shape[2] // 4].double()
        angle = torch.atan2(sine, cosine).item() % (2 * torch.pi)
        digits = 4 if pos_embed.dtype in (torch.float32, torch.float64) else 2  # half precision holds three
        settings["pe_interpolation"] = round(1 / angle, digits)
    return settings
