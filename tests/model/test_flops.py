"""The formula of operations, against torch's counter."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion.model.flops import forward_flops, training_flops
from diffusion.model.pixart import PixArt
from diffusion.model.pixart_config import preset_config


def count(length: int, size: int, train: bool, monkeypatch) -> tuple[PixArt, int]:
    """Return a network, and what torch counts of a pass of two samples."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # the meta device has none
    with torch.device("meta"):  # where attention is counted, too
        arguments = dict(input_size=32, model_max_length=length, mlp_ratio=3.0, caption_channels=48, patch_size=2)
        model = PixArt(depth=2, hidden_size=32, num_heads=2, **arguments).train(train)
        inputs = torch.empty(2, 16, size, size), torch.empty(2), torch.empty(2, length, 48)
        # the plain kernel: others compute scores again in the backward pass
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
            output = model(*inputs)
            if train:
                output.sum().backward()
    return model, counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 4, 16])
@pytest.mark.parametrize("size", [32, 48])
def test_a_forward_pass(length, size, monkeypatch):
    model, counted = count(length, size, False, monkeypatch)
    assert 2 * forward_flops(model.config, (size // 2) ** 2) == counted
    if size == 32:
        assert forward_flops(model.config) == forward_flops(model.config, 256)


@pytest.mark.parametrize("length", [1, 4])
def test_a_forward_and_a_backward_pass(length, monkeypatch):
    model, counted = count(length, 32, True, monkeypatch)
    assert 2 * training_flops(model.config) == counted


def test_the_published_network():
    """As docs/SCALING.md has it."""

    forward = forward_flops(preset_config("PixArt_XL_2_UNI", {}))
    assert forward / 1e12 == pytest.approx(0.2371, rel=1e-3)
