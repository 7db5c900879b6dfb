"""The network that a denoising run begins with: new, or from weights, with parts of it frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from diffusion.config.settings import Config
from diffusion.formats import LATENT_CHANNELS
from diffusion.model.convert import Weights, load_network, load_weights
from diffusion.model.initial_weights import transfer_weights
from diffusion.model.local_attention_init import init_local_attention
from diffusion.model.lora import (
    LoraSettings,
    adapter_settings,
    add_lora,
    check_no_student,
    is_adapter,
    load_lora,
    merged_state,
)
from diffusion.model.matching import add_positions, check_metadata, load_into
from diffusion.model.pixart import PixArt, build_model
from diffusion.model.pixart_config import check_arguments
from diffusion.utils.errors import InputError

# in what the network of one stage may differ from the weights of the stage before
STAGE_ARGUMENTS = frozenset({"input_size", "pe_interpolation", "model_max_length", "use_cond_pos_embed"})


def build_network(config: Config, load_from: str | None) -> tuple[PixArt, str]:
    """Build a new network, or one that starts from weights, without the config's `ignore_keys` of them; and where it is from.

    With a `lora`, the network is that of the config's load_from, frozen, with a new adapter beside its maps.
    Raises InputError for weights of another architecture or prediction, and an adapter of no network.
    """
    if config.lora.rank:
        return build_adapted_network(config)
    kwargs = check_arguments(config.model_kwargs, "model_kwargs.")
    if kwargs.get("in_channels", LATENT_CHANNELS) != LATENT_CHANNELS:
        raise InputError(f"model_kwargs.in_channels {kwargs['in_channels']}: latents have {LATENT_CHANNELS} channels")
    model = build_model(config.model, **config.model_arguments)
    model.grad_checkpointing = config.grad_checkpointing
    if config.local_start:
        init_local_attention(model)
    if load_from is not None:
        with refused_adapter(load_from):
            weights = load_weights(load_from, positions=False)  # which follow from the config
        state = weights.state_dict if config.lora.load_from is None else add_adapter(weights, config.lora.load_from)
        check_metadata(weights.metadata, model, config.prediction_type, load_from, ignore=STAGE_ARGUMENTS)
        check_span(config.input_size, config.pe_interpolation, weights.architecture, load_from)
        transferred = transfer_weights(model, state, config.ignore_keys, load_from)
        return model, f"{weights.file or load_from}:\n{transferred}"
    return model, f"seed {config.seed}"


def build_adapted_network(config: Config) -> tuple[PixArt, str]:
    """Load the network of the config's load_from, freeze it, and add a new adapter. Raises InputError for a config without one."""
    if config.load_from is None:
        raise InputError("lora without load_from: which network is adapted? Name its weights with load_from")
    with refused_adapter(config.load_from):
        model, file = load_network(config.load_from, config.model, config.model_arguments, config.prediction_type)
    model.grad_checkpointing = config.grad_checkpointing
    model.requires_grad_(False)
    settings, start = LoraSettings.of(config.lora.rank, config.lora.alpha, config.lora.targets), config.lora.load_from
    if start is None:
        add_lora(model, settings)
        return model, f"{file}, with a new adapter"
    found = adapter_settings(model)[load_lora(model, start, name="default", alpha=settings.alpha)]
    check_no_student(model, f"lora.load_from {start}")
    if found != settings:
        raise InputError(
            f"lora.load_from {start} has {found.describe()}, the config {settings.describe()}: expected the same; an adapter "
            "of other settings can be added to the network for good, with lora.rank=0"
        )
    return model, f"{file}, with the adapter {start}"


def add_adapter(weights: Weights, adapter: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a network with an adapter added to its maps for good. Raises MissingError, InputError."""
    network = PixArt(**weights.architecture)
    load_into(network, add_positions(network, weights.state_dict), weights.file or adapter)
    load_lora(network, adapter)
    check_no_student(network, f"lora.load_from {adapter}")
    return {name: tensor for name, tensor in merged_state(network).items() if name in weights.state_dict}


@contextmanager
def refused_adapter(source: str) -> Iterator[None]:
    """Say of weights that are refused, where they are those of an adapter, how an adapter is named. Raises InputError."""
    try:
        yield
    except InputError:
        if is_adapter(source):
            raise InputError(
                f"load_from {source} is an adapter, not a network: name the network with load_from, and this with "
                f"lora.load_from={source}"
            ) from None
        raise


def check_span(size: int, interpolation: float, architecture: Mapping[str, Any], source: str) -> None:
    """Raise InputError unless positions span what they spanned for the weights: else those would see another scale."""
    if "pe_interpolation" not in architecture:
        return
    before = architecture["input_size"] / architecture["pe_interpolation"] / architecture["patch_size"]
    now = size / interpolation / architecture["patch_size"]
    if abs(before / now - 1) > 0.01:
        right = interpolation * now / before
        raise InputError(
            f"the positions of {source} span 0 to {before:g}, those of the config 0 to {now:g}; set pe_interpolation={right:g}"
        )
