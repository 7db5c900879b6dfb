"""Averages with a power-function profile: closed forms, the weights they give to each step, and other lengths made afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_process
from scipy.integrate import quad

from diffusion.model import PixArt
from diffusion.model.convert import load_weights
from diffusion.optim.ema import PowerEMA, gamma_from_length, length_from_gamma, power_decay
from diffusion.training.checkpoints.checkpoint import checkpoints
from diffusion.training.checkpoints.posthoc_ema import (
    find_mix,
    find_snapshots,
    inner_products,
    nearest_mix,
    save_snapshots,
    snapshot_path,
)
from diffusion.utils.errors import InputError, MissingError
from tools.posthoc_ema import main as posthoc_ema

STEPS, EVERY = 400, 20
ARGUMENTS = dict(input_size=4, hidden_size=8, depth=1, num_heads=2, caption_channels=3)


def profile(gamma: float, step: float):
    return lambda s: (gamma + 1) * s**gamma / step ** (gamma + 1) if s <= step else 0.0


def explicit_average(trajectory: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weights (T, N) of steps 1 to T, each by the profile's integral over its own step."""
    edges = (torch.arange(len(trajectory) + 1).double() / len(trajectory)) ** (gamma + 1)
    return (edges[1:] - edges[:-1]) @ trajectory.double()


class Walk:
    """A network of 30 weights whose every step is a draw: a random walk with a drift that fades, plus noise."""

    def __init__(self):
        self.model = torch.nn.Linear(5, 6, bias=False)
        self.model.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.generator = torch.Generator().manual_seed(0)
        self.place = torch.randn(6, 5, generator=self.generator)
        self.trajectory = []

    def go(self) -> torch.nn.Module:
        drift, noise = torch.randn(2, 6, 5, generator=self.generator)
        self.place = self.place + 0.1 * drift + 0.1 / (1 + len(self.trajectory) / 50)
        self.model.weight.data.copy_(self.place + 0.3 * noise)
        self.model.count += 1
        self.trajectory.append(self.model.weight.detach().flatten().clone())
        return self.model


@pytest.mark.parametrize("length", [0.005, 0.05, 0.1, 0.2, 0.28])
def test_a_length_is_the_spread_of_its_profile(length):
    gamma = gamma_from_length(length)
    p = profile(gamma, 1.0)
    total, mean, square = (quad(lambda s, k=k: s**k * p(s), 0, 1, epsabs=1e-12, limit=200)[0] for k in range(3))
    assert total == pytest.approx(1, abs=1e-8)
    assert (square - mean**2) ** 0.5 == pytest.approx(length, rel=1e-5)
    assert length_from_gamma(gamma) == pytest.approx(length, rel=1e-9)


def test_the_lengths_of_the_paper():
    assert gamma_from_length(0.05) == pytest.approx(16.97, abs=0.005) and gamma_from_length(0.10) == pytest.approx(
        6.94, abs=0.005
    )
    for length in (0.0, -0.1, 0.289):
        with pytest.raises(InputError, match=r"expected 0 < length < 0\.289"):
            gamma_from_length(length)


def test_decay_is_that_of_the_paper():
    for t in (1, 2, 10, 5000):
        assert power_decay(6.94, t - 1, t) == pytest.approx((1 - 1 / t) ** 7.94)
    assert power_decay(3.0, 4, 7) == pytest.approx((1 - 1 / 5) ** 4 * (1 - 1 / 6) ** 4 * (1 - 1 / 7) ** 4)


class TestPowerEma:
    def test_it_is_the_weighted_sum_of_all_steps(self):
        walk = Walk()
        power_ema = PowerEMA(walk.model, (0.05, 0.1, 0.25))
        for step in range(1, STEPS + 1):
            power_ema.update(walk.go(), step)
        trajectory = torch.stack(walk.trajectory)
        for length, average in power_ema.averages.items():
            expected = explicit_average(trajectory, gamma_from_length(length))
            torch.testing.assert_close(average.tensors["weight"].flatten().double(), expected, rtol=0, atol=2e-5)
            assert average.tensors["count"] == STEPS

    def test_the_first_update_forgets_the_start(self):
        walk = Walk()
        power_ema = PowerEMA(walk.model, (0.1,))
        power_ema.update(walk.go(), 1)
        assert torch.equal(power_ema.averages[0.1].tensors["weight"], walk.model.weight)
        with pytest.raises(ValueError, match="step 1 after step 1"):
            power_ema.update(walk.model, 1)

    def test_steps_left_out_count_as_spent_at_the_next_weights(self):
        walk = Walk()
        every, some = PowerEMA(walk.model, (0.1,)), PowerEMA(walk.model, (0.1,))
        for step in range(1, 61):
            model = walk.go() if step % 3 == 1 else walk.model
            every.update(model, step)
            if step % 3 == 0:
                some.update(model, step)
        torch.testing.assert_close(some.averages[0.1].tensors["weight"], every.averages[0.1].tensors["weight"])

    def test_a_resumed_one_goes_on_to_the_bit(self, tmp_path):
        walk = Walk()
        power_ema = PowerEMA(walk.model, (0.05, 0.1))
        for step in range(1, 11):
            power_ema.update(walk.go(), step)
        torch.save(power_ema.state_dict(), tmp_path / "state")
        state = torch.load(tmp_path / "state", weights_only=True)
        resumed, fewer, none = (PowerEMA(walk.model, lengths) for lengths in ((0.1, 0.05), (0.05,), ()))
        for other in (resumed, fewer, none):
            other.load_state_dict(state)
        walk.go()
        for one in (power_ema, resumed, fewer, none):
            one.update(walk.model, 11)
        for other in (resumed, fewer):
            for length, average in other.averages.items():
                assert torch.equal(average.tensors["weight"], power_ema.averages[length].tensors["weight"])
        with pytest.raises(InputError, match=r"no average of relative length 0.07 \(it has: 0.05, 0.1\)"):
            PowerEMA(walk.model, (0.05, 0.07)).load_state_dict(state)
        with pytest.raises(InputError, match=r"length 0.1 \(it has: none\)"):
            PowerEMA(walk.model, (0.1,)).load_state_dict({})


class TestPosthoc:
    def test_inner_products_are_the_integrals(self):
        profiles = np.array([(3.0, 0.4), (5.0, 2.0), (5.0, 16.97)])
        products = inner_products(profiles, profiles)
        for i, (step1, gamma1) in enumerate(profiles):
            for j, (step2, gamma2) in enumerate(profiles):
                p, q = profile(gamma1, step1), profile(gamma2, step2)
                expected = quad(lambda s, p=p, q=q: p(s) * q(s), 0, min(step1, step2))[0]
                assert products[i, j] == pytest.approx(expected, rel=1e-6)

    def test_the_misfit_is_the_distance_of_the_profiles(self):
        profiles = [(step, gamma_from_length(length)) for step in (100, 200, 300) for length in (0.05, 0.1)]
        wanted = (300, gamma_from_length(0.15))
        factors, misfit = nearest_mix(np.array(profiles), wanted)
        s = (np.arange(300_000) + 0.5) / 1000
        curves = [np.where(s <= t, (g + 1) * (s / t) ** g / t, 0) for t, g in (*profiles, wanted)]
        mixed = factors @ np.stack(curves[:-1])
        expected = (((mixed - curves[-1]) ** 2).sum() / (curves[-1] ** 2).sum()) ** 0.5
        assert misfit == pytest.approx(expected, rel=1e-3) and 0.01 < misfit < 0.2
        assert factors.sum() == pytest.approx(1, abs=1e-12)
        for nudge in np.eye(6) - 1 / 6:  # no other mix with that sum is nearer
            for size in (1e-3, -1e-3):
                other = (factors + size * nudge) @ np.stack(curves[:-1])
                assert ((other - curves[-1]) ** 2).sum() > ((mixed - curves[-1]) ** 2).sum()

    def test_a_length_that_was_kept_comes_back(self):
        snapshots = [(step, gamma_from_length(length)) for step in range(2000, 120_001, 2000) for length in (0.05, 0.1)]
        factors, misfit = nearest_mix(np.array(snapshots), snapshots[-2])
        expected = np.zeros(len(snapshots))
        expected[-2] = 1
        np.testing.assert_allclose(factors, expected, atol=1e-9)
        assert misfit < 1e-6

    @pytest.mark.parametrize(("length", "within"), [(0.03, 0.015), (0.07, 7e-4), (0.12, 4e-4), (0.2, 0.009)])
    def test_a_third_length_agrees_with_the_average_kept_in_training(self, length, within):
        """20 snapshots of two lengths; the error over the distance between the average and the last weights."""
        walk = Walk()
        kept, direct = PowerEMA(walk.model, (0.05, 0.1)), PowerEMA(walk.model, (length,))
        profiles, averages = [], []
        for step in range(1, STEPS + 1):
            walk.go()
            kept.update(walk.model, step)
            direct.update(walk.model, step)
            if step % EVERY == 0:
                for of_snapshot, average in kept.averages.items():
                    profiles.append((step, gamma_from_length(of_snapshot)))
                    averages.append(average.tensors["weight"].double().clone())
        factors, _ = nearest_mix(np.array(profiles), (STEPS, gamma_from_length(length)))
        made = torch.tensordot(torch.from_numpy(factors), torch.stack(averages), 1)
        expected = direct.averages[length].tensors["weight"].double()
        error = ((made - expected).norm() / (walk.model.weight - expected).norm()).item()
        assert error < within


@pytest.fixture
def run_dir(tmp_path) -> tuple[Path, PowerEMA]:
    """Snapshots of a network that moves, but for its frozen output layer; and its average of length 0.07."""
    torch.manual_seed(0)
    model = PixArt(**ARGUMENTS)
    for parameter in model.final_layer.parameters():
        torch.nn.init.normal_(parameter)
    kept, direct = PowerEMA(model, (0.05, 0.1)), PowerEMA(model, (0.07,))
    for step in range(1, STEPS + 1):
        for name, parameter in model.named_parameters():
            if not name.startswith("final_layer."):
                parameter.data.add_(0.02 * torch.randn_like(parameter))
        kept.update(model, step)
        direct.update(model, step)
        if step % EVERY == 0:
            metadata = dict(architecture=model.config.to_dict(), prediction_type="v_prediction")
            save_snapshots(kept.state_dict(), metadata, {}, tmp_path / "run")
    return tmp_path / "run", direct


class TestTool:
    def test_it_writes_the_average_that_was_not_kept(self, run_dir, tmp_path):
        work_dir, direct = run_dir
        assert snapshot_path(work_dir, 20, 0.05) == work_dir / "checkpoints/power_ema/step_00000020_0.050.ckpt"
        assert len(find_snapshots(work_dir)) == 2 * STEPS // EVERY and not checkpoints(work_dir)
        done = in_process(posthoc_ema, work_dir, "--length", 0.07, "--out", tmp_path / "ema.ckpt")
        assert done.returncode == 0, done.stderr
        assert f"length 0.07 at step {STEPS}, of 40 snapshots" in done.stdout and "warning" not in done.stderr
        content = torch.load(tmp_path / "ema.ckpt", weights_only=True)
        assert (content["step"], content["sigma_rel"]) == (STEPS, 0.07)
        weights = load_weights(tmp_path / "ema.ckpt")
        assert weights.metadata["prediction_type"] == "v_prediction" and weights.metadata["num_heads"] == 2
        expected = direct.averages[0.07].tensors
        assert list(weights.state_dict) == list(expected)
        for name, tensor in weights.state_dict.items():
            if name.startswith("final_layer.") or name in ("pos_embed", "y_embedder.y_embedding"):
                assert torch.equal(tensor, expected[name]), name  # what never moved
            else:
                torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-4)
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["ema.ckpt"]

    def test_an_earlier_step_and_a_rough_fit(self, run_dir, tmp_path):
        work_dir, _ = run_dir
        mix = find_mix(find_snapshots(work_dir), 0.05, step=200)
        assert len(mix.snapshots) == 20 and mix.factors[-2] == pytest.approx(1, abs=1e-6)
        arguments = (work_dir, "--length", 0.05, "--step", 200, "--out", tmp_path / "a.ckpt")
        assert in_process(posthoc_ema, *arguments).returncode == 0
        kept, made = (
            load_weights(path).state_dict for path in (snapshot_path(work_dir, 200, 0.05), tmp_path / "a.ckpt")
        )
        torch.testing.assert_close(made["blocks.0.attn.qkv.weight"], kept["blocks.0.attn.qkv.weight"])
        rough = in_process(posthoc_ema, work_dir, "--length", 0.25, "--step", 20, "--out", tmp_path / "b.ckpt")
        assert rough.returncode == 0 and "2 snapshots of length 0.05, 0.1 make length 0.25 only roughly" in rough.stderr

    def test_what_is_refused(self, run_dir, tmp_path):
        work_dir, _ = run_dir
        out = tmp_path / "new.ckpt"

        def refused(message: str, folder: Path = work_dir, out: Path = out, **options) -> None:
            options = {"length": 0.07, **options}
            flags = [part for name, value in options.items() for part in (f"--{name}", value)]
            done = in_process(posthoc_ema, folder, "--out", out, *flags)
            assert done.returncode == 2 and message in done.stderr and done.stderr.count("error:") == 1, done.stderr
            assert not (tmp_path / "new.ckpt").exists()

        (tmp_path / "old.ckpt").touch()
        refused("old.ckpt is already there", out=tmp_path / "old.ckpt")
        refused("expected a .ckpt or .pth file", out=tmp_path / "new.safetensors")
        refused("power_ema = dict(lengths=(0.05, 0.10))", folder=tmp_path)
        refused("relative length 0.3: expected 0 < length < 0.289", length=0.3)
        refused("no snapshot of step 30; there are some of 20, 40, 60", step=30)
        path = snapshot_path(work_dir, 40, 0.1)
        content = torch.load(path, weights_only=True)
        for change, message in (
            ({"step": 60}, "is of step 60 and length 0.1"),
            ({"prediction_type": "epsilon"}, "are of different networks (prediction_type)"),
            ({"state_dict": {}}, "is of another architecture"),
        ):
            torch.save({**content, **change}, path)
            refused(message)
        torch.save(content["state_dict"], path)
        refused("is no snapshot")
        path.write_bytes(path.read_bytes()[:1000])
        refused("is refused: it is not a whole torch file")
        with pytest.raises(MissingError):
            find_snapshots(tmp_path / "none")
