"""Cache schedules that fit a network."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import forget_processes, save_run

from diffusion.caching import Differences, read_schedule
from diffusion.cli.commands.block_cache import block_cache
from diffusion.generation.cache_schedules import find_schedule, record_products
from diffusion.generation.solver import Solver
from diffusion.utils.errors import InputError

WIDTH = 8


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


def measure(values: torch.Tensor, chosen: tuple[int, ...], order: int) -> float:
    """Return the mean relative squared error of what `CachedNetwork` predicts at the steps that are not chosen."""
    differences, error = Differences(order), 0.0
    for step, value in enumerate(values):
        if step in chosen:
            differences.add(step, value)
        else:
            error += float((differences.predict(step) - value).square().sum() / value.square().sum())
    return error / len(values)


@pytest.mark.parametrize("order", [0, 1])
def test_the_best_of_all_schedules_is_found(order):
    """Steps along a bent curve; every choice of five of nine steps is tried, as sampling predicts them."""
    times = torch.linspace(0, 1, 9, dtype=torch.float64) ** 2
    values = torch.stack([times, (4 * times).sin(), torch.ones(9, dtype=torch.float64)], 1)
    schedule, error = find_schedule((values @ values.T).numpy(), 5, order)
    chosen = tuple(i for i, each in enumerate(schedule.computed) if each)
    errors = {(0, 1, *rest): measure(values, (0, 1, *rest), order) for rest in combinations(range(2, 9), 3)}
    assert error == pytest.approx(errors[chosen], rel=1e-6) and errors[chosen] == pytest.approx(min(errors.values()))
    assert schedule.order == order and sum(schedule.computed) == 5


def test_numbers_of_steps_that_cannot_be():
    with pytest.raises(InputError, match="1 computed steps: expected 2 to 6"):
        find_schedule(np.eye(6), 1)
    with pytest.raises(InputError, match="7 computed steps: expected 2 to 6"):
        find_schedule(np.eye(6), 7)
    schedule, error = find_schedule(np.eye(6), 6)
    assert all(schedule.computed) and error == 0


def test_the_command_writes_what_sampling_takes(tmp_path: Path, capsys):
    run = save_run(tmp_path / "run", tmp_path, WIDTH, 256)
    np.save(tmp_path / "tokens.npy", np.ones((3, 1, WIDTH), np.float32))
    options = dict(workdir=run, tokens=[tmp_path / "tokens.npy"], count=3, steps=6, guidance=2.0, device="cpu")
    block_cache(**options, computed=4, guidance_interval=(0.3, 5.0), out=tmp_path / "schedule.json")
    assert "computed steps: 0, 1, " in capsys.readouterr().out
    schedule = read_schedule(str(tmp_path / "schedule.json"), 6)
    assert schedule is not None and sum(schedule.computed) == 4
    forget_processes()
    with pytest.raises(InputError, match="expected a file that ends in .json"):
        block_cache(**options, out=tmp_path / "schedule.txt")


def test_a_network_with_a_controlnet_is_refused():
    session = SimpleNamespace(
        run=SimpleNamespace(student=None, controlnet=object(), folder=Path("run")), solver=Solver(4)
    )
    with pytest.raises(InputError, match="run has a ControlNet: expected its base, whose schedule serves both"):
        record_products(session, [], 1)  # type: ignore[arg-type]
