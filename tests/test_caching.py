"""Blocks that are predicted from earlier steps instead of computed."""

from __future__ import annotations

import json

import pytest
import torch
from small_pixart import build_small_pixart

from diffusion.caching import CachedNetwork, CacheSchedule, Differences, read_schedule
from diffusion.sampling import sample_latents
from diffusion.utils.errors import InputError


def test_names_have_a_schedule_of_any_number_of_steps():
    assert read_schedule("none", 20) is None
    balanced, fast = read_schedule("balanced", 8), read_schedule("fast", 8)
    assert balanced is not None and fast is not None
    assert balanced.computed == (True, True, False, True, False, True, False, True)
    assert fast.computed == (True, True, False, False, True, False, False, True)
    assert sum(read_schedule("balanced", 20).computed) == 11  # pyright: ignore[reportOptionalMemberAccess]


def test_files_are_schedules_of_their_own_number_of_steps(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(CacheSchedule((True, False, True), 2).to_dict()))
    assert read_schedule(str(path), 3) == CacheSchedule((True, False, True), 2)
    for name, steps, message in (
        (str(path), 4, "is a cache schedule of 3 steps, and 4 are taken: take as many"),
        ("quick", 4, "expected none, balanced, fast, or a schedule.json"),
    ):
        with pytest.raises(InputError, match=message):
            read_schedule(name, steps)
    path.write_text("{}")
    with pytest.raises(InputError, match="is no cache schedule: expected computed"):
        read_schedule(str(path), 3)
    with pytest.raises(InputError, match="computes the first step"):
        CacheSchedule((False, True))
    with pytest.raises(InputError, match="of order 3: expected 0, 1 or 2"):
        CacheSchedule((True,), 3)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_polynomials_of_the_order_are_predicted_exactly(order):
    differences = Differences(order)
    curve = [torch.tensor(float(sum((i + 1) * step**i for i in range(order + 1)))) for step in range(12)]
    for step in (0, 1, 3, 6):  # unevenly
        differences.add(step, curve[step])
    for step in (7, 9, 11):
        torch.testing.assert_close(differences.predict(step), curve[step])
    assert len(differences.values) == order + 1


@pytest.fixture
def network():
    network = build_small_pixart().eval()
    for part in (network.final_layer.linear, *(block.cross_attn.proj for block in network.blocks)):
        torch.nn.init.normal_(part.weight, std=0.1)  # which begin at zero
    return network


def latents_of(network, steps=6, interval=None, batch=2):
    config = network.network.config if isinstance(network, CachedNetwork) else network.config
    noise = torch.randn(batch, config.in_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = torch.ones(batch, config.model_max_length, config.caption_channels)
    return sample_latents(network, noise, tokens, network.null_condition, steps, 2.0, guidance_interval=interval)


def count_blocks(network, monkeypatch):
    """Return a list that grows by one at every run through the blocks."""
    runs, run_blocks = [], network.run_blocks
    monkeypatch.setattr(network, "run_blocks", lambda *given: runs.append(1) or run_blocks(*given))
    return runs


def test_a_schedule_that_computes_all_changes_no_bit_but_rounding(network):
    cached = CachedNetwork(network, CacheSchedule((True,) * 6))
    torch.testing.assert_close(latents_of(cached), latents_of(network), rtol=1e-4, atol=1e-4)


def test_steps_that_are_not_computed_run_no_blocks(network, monkeypatch):
    exact = latents_of(network)
    runs = count_blocks(network, monkeypatch)
    schedule = CacheSchedule((True, True, False, True, False, True))
    found = latents_of(CachedNetwork(network, schedule))
    assert len(runs) == 4
    error = (found - exact).abs().mean()
    skipped = latents_of(CachedNetwork(network, CacheSchedule((True, False, False, False, False, False), order=0)))
    assert 0 < error < 0.5 * (skipped - exact).abs().mean()


def test_a_batch_of_another_size_is_computed(network, monkeypatch):
    """At the ends of a guidance interval: passes are of two images, then of four, then of two."""
    runs = count_blocks(network, monkeypatch)
    schedule = CacheSchedule((True, True, False, False, False, False))
    latents_of(CachedNetwork(network, schedule), interval=(0.3, 5.0))
    assert 2 < len(runs) <= 4


def test_windows_of_a_picture_are_kept_apart(network, monkeypatch):
    """Two calls at each timestep, of different content, are predicted each from its own."""
    cached = CachedNetwork(network, CacheSchedule((True, True, False)))
    config = network.config
    parts = [torch.randn(1, config.in_channels, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    tokens = torch.ones(1, config.model_max_length, config.caption_channels)
    runs = count_blocks(network, monkeypatch)
    for timestep in (900, 500, 100):
        found = [cached(part, torch.tensor([timestep]), tokens) for part in parts]
    assert len(runs) == 4 and not torch.allclose(found[0], found[1])
    with pytest.raises(InputError, match="a cache schedule of 3 steps: one more was taken"):
        cached(parts[0], torch.tensor([5]), tokens)


def test_a_controlnet_is_not_run_where_no_blocks_are(network, monkeypatch):
    from diffusion.condition import Condition
    from diffusion.control import ControlledNetwork

    calls = []

    def controlnet(x, timestep, tokens, control, dropped=None):
        calls.append(int(timestep[0]))
        return [torch.ones(len(x), 16, network.config.hidden_size)]

    cached = CachedNetwork(network, CacheSchedule((True, True, False)))
    steered = ControlledNetwork(cached, controlnet, skip=cached.reuses)
    config = network.config
    x = torch.zeros(1, config.in_channels, 8, 8)
    condition = Condition(torch.ones(1, config.model_max_length, config.caption_channels), torch.zeros(1, 1, 8, 8))
    runs = count_blocks(network, monkeypatch)
    for timestep in (900, 500, 100):
        steered(x, torch.tensor([timestep]), condition)
    assert calls == [900, 500] and len(runs) == 2
