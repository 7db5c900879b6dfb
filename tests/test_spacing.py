"""Where the steps of a solver lie."""

from __future__ import annotations

import pytest

from diffusion.schedule import linear_schedule
from diffusion.spacing import check_spacing, place_steps
from diffusion.utils.errors import InputError

LEVELS = linear_schedule().noise_levels.numpy()


def test_uniform_steps_are_left_to_the_solver():
    assert place_steps("uniform", 20) is None


@pytest.mark.parametrize("rho", [1.5, 3, 7])
def test_noise_levels_to_the_power_of_one_by_rho_are_evenly_spaced(rho):
    found = [*LEVELS[place_steps(f"karras:{rho}", 8)], LEVELS[0]]
    powers = [level ** (1 / rho) for level in found]
    for i, power in enumerate(powers):
        assert power == pytest.approx(powers[0] + i / 8 * (powers[-1] - powers[0]), rel=0.02, abs=0.02)
    assert place_steps("karras", 8) == place_steps("karras:7", 8)


def test_steps_of_a_power_of_time_are_denser_at_low_noise_and_nest():
    assert place_steps("power:1.5", 4) == [999, 649, 353, 125]
    eight = place_steps("power:1.5", 8)
    assert eight is not None and eight[::2] == [999, 649, 353, 125] and place_steps("power", 2) == [999, 500]


def test_log_snr_falls_by_equal_factors():
    found = LEVELS[place_steps("log-snr", 10)]
    factor = (LEVELS[0] / LEVELS[-1]) ** 0.1
    assert found[1:4] / found[:3] == pytest.approx(factor, rel=0.02)


def test_timesteps_that_are_given_are_kept_or_interpolated():
    """Twice as many steps lie at the same levels, with one between two each."""
    given = place_steps("999,600,300,40", 4)
    assert given == [999, 600, 300, 40]
    twice = place_steps("999,600,300,40", 8)
    assert twice is not None and twice[::2] == given
    assert LEVELS[twice[1]] == pytest.approx((LEVELS[999] * LEVELS[600]) ** 0.5, rel=0.02)


@pytest.mark.parametrize("spacing", ["karras", "log-snr", "999,500,3,2,1,0"])
def test_many_steps_do_not_repeat(spacing):
    found = place_steps(spacing, 60)
    assert found is not None and len(set(found)) == 60 and sorted(found, reverse=True) == found and found[-1] >= 0


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        ("karas", "expected uniform, karras, karras:RHO, power:P, log-snr, or timesteps"),
        ("karras:x", "expected karras, karras:RHO or power:P, with a number of at least 1"),
        ("karras:0.5", "expected karras, karras:RHO or power:P"),
        ("power:0.5", "expected karras, karras:RHO or power:P"),
        ("10,20", "expected falling timesteps from 999 to 0"),
        ("1000,5", "expected falling timesteps from 999 to 0"),
    ],
)
def test_spacings_that_cannot_be(spacing, message):
    with pytest.raises(InputError, match=message):
        check_spacing(spacing)
    with pytest.raises(InputError, match="do not fit in 1000 timesteps"):
        place_steps("log-snr", 990)
