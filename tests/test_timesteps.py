"""Timestep samplers against closed forms: every distribution is read off an even grid of uniform numbers."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.special import logit
from scipy.stats import norm

from diffusion.config.settings import TimestepConfig
from diffusion.schedule import linear_schedule
from diffusion.timesteps import LogitNormal, LossAware, Uniform, build_timestep_sampler
from diffusion.utils.errors import InputError

N = 2_000_000
GRID = (torch.arange(N, dtype=torch.float64) + 0.5) / N
EDGES = torch.tensor([0.0, 1 - 2**-53, 1.0], dtype=torch.float64)  # 1: what float32 makes of the number before


def shares(timestep: torch.Tensor) -> torch.Tensor:
    return timestep.bincount(minlength=1000) / len(timestep)


def warm_sampler(seed: int = 0) -> LossAware:
    """One that has seen, in batches of mixed timesteps, 12 losses of each: of size 1 + t / 100."""
    sampler = LossAware()
    generator = torch.Generator().manual_seed(seed)
    timestep = torch.arange(1000).repeat(12)[torch.randperm(12_000, generator=generator)]
    loss = (1 + timestep / 100) * torch.rand(12_000, generator=generator)
    for some_timesteps, some_losses in zip(timestep.split(700), loss.split(700), strict=True):
        sampler.update(some_timesteps, some_losses)
    return sampler


def test_uniform_timesteps_are_equally_frequent():
    timestep, weight = Uniform()(torch.tensor([0.0, 0.0009, 0.001, 0.5, 0.9999]))
    assert timestep.tolist() == [0, 0, 1, 500, 999] and timestep.dtype == torch.int64
    assert weight.tolist() == [1.0] * 5 and weight.dtype == torch.float32
    assert Uniform()(EDGES)[0].tolist() == [0, 999, 999]
    assert torch.equal(shares(Uniform()(GRID)[0]), torch.full((1000,), 1e-3))


@pytest.mark.parametrize(
    ("mean", "std", "uniform"), [(0.0, 1.0, 0.0), (-1.05, 1.0, 0.0), (0.5, 0.6, 0.0), (-1.05, 0.5, 0.2)]
)
def test_logit_normal_has_its_distribution(mean, std, uniform):
    """The share of step k is that of the normal between the logits of k / 1000 and (k + 1) / 1000, beside the uniform."""
    timestep, weight = LogitNormal(mean, std, uniform)(GRID)
    below = norm.cdf((logit(np.arange(1001) / 1000) - mean) / std)
    expected = uniform / 1000 + (1 - uniform) * torch.from_numpy(below[1:] - below[:-1])
    assert (shares(timestep) - expected).abs().max() <= 2.01 / N
    assert torch.all(weight == 1)
    median = LogitNormal(mean, std)(torch.tensor([0.5]))[0].item()
    assert median == int(1000 / (1 + math.exp(-mean)))
    assert LogitNormal(mean, std)(EDGES)[0].tolist()[::2] == [0, 999]


def test_noise_and_signal_are_equal_at_step_259():
    median = LogitNormal(-1.05)(torch.tensor([0.5]))[0]
    assert linear_schedule().noise_levels[median].item() == pytest.approx(1, abs=0.01)


class TestLossAware:
    def test_uniform_until_every_timestep_is_warm(self):
        sampler = LossAware()
        for _ in range(10):
            assert torch.equal(sampler(GRID[::1000])[0], Uniform()(GRID[::1000])[0])
            assert torch.all(sampler(GRID[::1000])[1] == 1)
            sampler.update(torch.arange(999), torch.rand(999))
        sampler.update(torch.full((9,), 999), torch.full((9,), 5.0))
        assert not sampler.is_warm
        sampler.update(torch.tensor([999]), torch.tensor([5.0]))
        assert sampler.is_warm and sampler.probabilities()[999] > 2e-3

    def test_shares_follow_the_losses_and_weights_undo_them(self):
        sampler = LossAware()
        of_step = 0.1 + torch.arange(1000).double() / 100
        for factor in (1.0, 3.0):  # five of each: the root of the mean square is sqrt(5) times the smaller
            for _ in range(5):
                sampler.update(torch.arange(1000), factor * of_step)
        expected = 0.999 * of_step / of_step.sum() + 1e-6
        torch.testing.assert_close(sampler.probabilities(), expected, rtol=1e-12, atol=0)
        timestep, weight = sampler(GRID)
        assert (shares(timestep) - expected).abs().max() <= 1.01 / N
        torch.testing.assert_close(weight.double(), 1 / (1000 * expected[timestep]), rtol=1e-6, atol=0)
        # any function of the timestep has the mean of uniform timesteps
        value = torch.cos(timestep / 50.0)
        assert (weight * value).mean().item() == pytest.approx(
            torch.cos(torch.arange(1000) / 50.0).mean().item(), abs=1e-4
        )
        assert sampler(EDGES)[0].tolist() == [0, 999, 999]

    def test_the_last_ten_losses_are_kept_as_by_a_loop(self):
        sampler, kept = LossAware(), {t: [] for t in range(1000)}
        generator = torch.Generator().manual_seed(3)
        for size in (1, 50, 300, 5):
            timestep = torch.randint(7, (size,), generator=generator)  # many times the same, up to 40 in one call
            loss = torch.rand(size, generator=generator)
            sampler.update(timestep, loss)
            for t, value in zip(timestep.tolist(), loss.tolist(), strict=True):
                kept[t] = [*kept[t], value][-10:]
        for t in range(7):
            assert sorted(sampler.losses[t].tolist()) == sorted(kept[t])
        assert sampler.seen[:7].sum() == 356 and torch.all(sampler.losses[7:] == 0)

    def test_one_update_equals_several_of_its_parts(self):
        one, many = LossAware(), LossAware()
        timestep = torch.randint(1000, (5000,), generator=torch.Generator().manual_seed(0))
        loss = torch.arange(5000.0)
        one.update(timestep, loss)
        for some_timesteps, some_losses in zip(timestep.split(33), loss.split(33), strict=True):
            many.update(some_timesteps, some_losses)
        assert torch.equal(one.losses, many.losses) and torch.equal(one.seen, many.seen)

    def test_nan_and_infinite_losses_are_ignored(self):
        sampler, other = warm_sampler(), warm_sampler()
        loss = torch.tensor([float("nan"), 2.0, float("inf")])
        sampler.update(torch.tensor([3, 4, 4]), loss)
        other.update(torch.tensor([4]), torch.tensor([2.0]))
        assert torch.equal(sampler.probabilities(), other.probabilities()) and torch.equal(sampler.seen, other.seen)

    def test_losses_of_zero_make_no_nan(self):
        sampler = LossAware()
        sampler.update(torch.arange(1000).repeat(10), torch.zeros(10_000))
        torch.testing.assert_close(sampler.probabilities(), torch.full((1000,), 1e-3, dtype=torch.float64))

    def test_a_resumed_sampler_continues_bit_equal(self, tmp_path):
        sampler, resumed = warm_sampler(), LossAware()
        torch.save(sampler.state_dict(), tmp_path / "state")
        resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert torch.equal(sampler(GRID[::999])[0], resumed(GRID[::999])[0]) and resumed.is_warm
        state = copy.deepcopy(resumed.state_dict())
        for one in (sampler, resumed):
            one.update(torch.tensor([5, 5, 800]), torch.tensor([1.0, 2.0, 3.0]))
        assert all(torch.equal(a, b) for a, b in zip(sampler(GRID[::999]), resumed(GRID[::999]), strict=True))
        assert not torch.equal(state["losses"], resumed.losses)
        resumed.load_state_dict({})  # of a run that drew its timesteps otherwise
        assert not resumed.is_warm and resumed.seen.sum() == 0
        with pytest.raises(InputError, match="state has"):
            resumed.load_state_dict({**state, "losses": torch.zeros(1000, 5)})


def test_samplers_are_built_by_name():
    assert type(build_timestep_sampler()) is Uniform
    logit_normal = build_timestep_sampler("logit_normal", -0.5, 0.8)
    assert (logit_normal.mean, logit_normal.std) == (-0.5, 0.8)
    assert build_timestep_sampler("loss_aware").needs_losses and not logit_normal.needs_losses
    with pytest.raises(InputError, match="'cosine': expected one of uniform, logit_normal, loss_aware"):
        build_timestep_sampler("cosine")
    for kind in ("uniform", "logit_normal", "loss_aware"):  # what a config may say
        build_timestep_sampler(**dataclasses.asdict(TimestepConfig(kind)))
    with pytest.raises(InputError, match="std 0"):
        build_timestep_sampler("logit_normal", std=0.0)
    for sampler in (Uniform(), logit_normal):  # of a run that learnt its timesteps before
        sampler.load_state_dict(warm_sampler().state_dict())
        sampler.update(torch.tensor([1]), torch.tensor([1.0]))
        assert sampler.state_dict() == {}
