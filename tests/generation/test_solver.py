"""Settings of solvers: what is refused before anything is sampled."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from diffusion.config.settings import Config, SampleGridConfig
from diffusion.formats import DEFAULT_SOLVER
from diffusion.generation.solver import Solver
from diffusion.utils.errors import InputError


def test_defaults_are_those_of_the_published_samples():
    run = SimpleNamespace(config=Config(), student=None)
    solver = Solver().for_run(run)
    assert (solver.algorithm, solver.steps, solver.strength(run), solver.guidance_interval) == (
        DEFAULT_SOLVER,
        20,
        2.0,
        None,
    )


def test_guidance_is_that_of_the_run_s_sample_grids_unless_another_is_given():
    run = SimpleNamespace(config=Config(sample_grid=SampleGridConfig(guidance=1.2)), student=None)
    assert (Solver().strength(run), Solver(guidance=3.0).strength(run)) == (1.2, 3.0)


def test_the_solver_of_consistency_is_of_students_alone():
    with pytest.raises(
        InputError, match="lcm is the solver of students of latent consistency, and the network is none"
    ):
        Solver(algorithm="lcm").for_run(SimpleNamespace(student=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "euler"}, "no sampling algorithm 'euler'"),
        ({"steps": 0}, "expected 1 to 1000"),
        ({"algorithm": "iddpm", "steps": 1}, "cannot take 1 steps"),
        ({"guidance_interval": (5.0, 0.3)}, "0 <= LO < HI"),
    ],
)
def test_settings_that_cannot_be_raise_when_they_are_made(settings, message):
    with pytest.raises(InputError, match=message):
        Solver(**settings)


def test_a_schedule_is_of_the_steps_that_are_taken(tmp_path):
    """From latents of images on, fewer are: a schedule of all of them would be shifted."""
    for count in (12, 20):
        computed = [True] * count
        (tmp_path / f"{count}.json").write_text(json.dumps({"computed": computed, "order": 1}))
    assert Solver(20, start_strength=0.6, block_cache=str(tmp_path / "12.json")).steps == 20
    with pytest.raises(InputError, match="a cache schedule of 20 steps, and 12 are taken"):
        Solver(20, start_strength=0.6, block_cache=str(tmp_path / "20.json"))
