"""Settings of solvers: what is refused before anything is sampled."""

from __future__ import annotations

import pytest

from diffusion.formats import DEFAULT_SOLVER
from diffusion.generation.solver import Solver
from diffusion.utils.errors import InputError


def test_defaults_are_those_of_the_published_samples():
    solver = Solver()
    assert (solver.algorithm, solver.steps, solver.guidance, solver.guidance_interval) == (
        DEFAULT_SOLVER,
        20,
        2.0,
        None,
    )


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
