"""Guidance in one pass of a doubled batch."""

from __future__ import annotations

import pytest
import torch

from diffusion.guidance import guided_prediction


def test_guidance_covers_all_channels_and_skips_the_null_pass_at_one():
    calls = []

    def network(x, timestep, y):
        calls.append(len(x))
        return y[:, :1, :1, None].expand(-1, 32, *x.shape[2:]).clone()

    x, timestep = torch.zeros(2, 16, 4, 4), torch.zeros(2, dtype=torch.int64)
    y, null = torch.full((2, 1, 4), 3.0), torch.full((1, 4), 1.0)
    noise, variance = guided_prediction(network, x, timestep, y, null, guidance=2.5)
    assert torch.all(noise == 1 + 2.5 * (3 - 1)) and noise.shape == x.shape
    assert torch.all(variance == 3)  # that of the conditional pass
    noise, _ = guided_prediction(network, x, timestep, y, None, guidance=1.0)
    assert torch.all(noise == 3)
    assert calls == [4, 2]
    with pytest.raises(ValueError, match="null condition"):
        guided_prediction(network, x, timestep, y, None, guidance=2.0)


def test_a_weaker_network_guides_instead_of_the_null_condition():
    """weak + w * (network - weak), for the same condition, of the network's own batch; at 1 it is not run."""
    calls = []

    def weak(x, timestep, y):
        calls.append((len(x), y))
        return torch.cat([torch.full_like(x, 2.0), x], dim=1)

    def network(x, timestep, y):
        return torch.cat([torch.full_like(x, 3.0), torch.full_like(x, 7.0)], dim=1)

    x, timestep, y = torch.zeros(2, 16, 4, 4), torch.zeros(2, dtype=torch.long), torch.ones(2, 1, 4)
    predicted, variance = guided_prediction(network, x, timestep, y, None, 1.5, weak)
    assert torch.all(predicted == 3.5) and variance is not None and torch.all(variance == 7)
    assert len(calls) == 1 and calls[0][0] == 2 and calls[0][1] is y
    unguided, _ = guided_prediction(network, x, timestep, y, None, 1.0, weak)
    assert torch.all(unguided == 3) and len(calls) == 1
