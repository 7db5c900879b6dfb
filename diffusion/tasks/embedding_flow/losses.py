"""The loss of rectified flow: squared error of the velocity along straight ways, at times drawn uniformly.

Letters: B images, L tokens of an image, D width of an embedding, K values of a token as the network sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from diffusion.data.datasets.embeddings import EmbeddingBatch
from diffusion.model.flow import EmbeddingFlow
from diffusion.utils.seeds import mix_seed


class FlowNoise(NamedTuple):
    """What is random about a batch: times, (B,) or one for each token (B, L); and noise (B, L, K), where a flow starts at it."""

    time: torch.Tensor
    noise: torch.Tensor | None


def draw_flow_noise(seeds: Sequence[int], tokens: torch.Tensor, flow: EmbeddingFlow) -> FlowNoise:
    """Draw times of tokens (B, L, D), and the noise of a flow that starts at it, each image's from its own seed."""
    length, device, config = tokens.shape[1], tokens.device, flow.config
    generator = torch.Generator(device)
    time = torch.empty(len(seeds), 1 if config.tokens > 1 else length, device=device)
    noise = torch.empty(len(seeds), length, config.size, device=device) if config.from_noise else None
    for number, seed in enumerate(seeds):
        generator.manual_seed(mix_seed(seed, 1))
        torch.rand(time.shape[1:], generator=generator, device=device, out=time[number])
        if noise is not None:
            torch.randn(noise.shape[1:], generator=generator, device=device, out=noise[number])
    return FlowNoise(time, noise)


def flow_losses(network: Any, flow: EmbeddingFlow, batch: EmbeddingBatch, noise: FlowNoise) -> torch.Tensor:
    """Return the squared error (B,) of the velocity of `network`, which is `flow` or what processes have put around it.

    That of a flow from noise is the error of embeddings, not of their whitened components: there the thousand components that
    hardly vary would hide the few that tell tissues apart.
    """
    tokens, source, label = batch.tokens, batch.source, batch.label
    if flow.scale is not None:
        tokens, source = flow.scale.whiten(tokens, label), noise.noise
    assert source is not None
    count, length = tokens.shape[:2]
    time = noise.time
    between = (1 - time[..., None]) * source + time[..., None] * tokens
    if flow.config.tokens == 1:  # every token by itself
        label = None if label is None else label.repeat_interleave(length)
        velocity = network(between.flatten(0, 1), time.flatten(), label).unflatten(0, (count, length))
    else:
        velocity = network(between, time[:, 0], label)
    error = velocity.float() - (tokens - source)
    return (error if flow.scale is None else flow.scale.as_embeddings(error)).square().mean(dim=(1, 2))
