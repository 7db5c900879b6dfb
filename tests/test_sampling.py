"""Solvers on a network whose answer is known; guidance; one generator per image."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from diffusion.formats import CONSISTENCY_SOLVER, SOLVERS
from diffusion.sampling import (
    ALGORITHMS,
    SPACED,
    Start,
    check_guidance_interval,
    image_generator,
    initial_noise,
    prepare_scheduler,
    sample_latents,
)
from diffusion.schedule import linear_schedule
from diffusion.utils.errors import InputError

ALPHA_BAR = linear_schedule().alpha_bar.float()
MEAN, STD = 0.7, 0.5


def gaussian_network(x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The exact noise of data that is N(MEAN, STD^2), with the posterior's variance."""
    alpha_bar = ALPHA_BAR[timestep].view(-1, 1, 1, 1)
    variance = alpha_bar * STD**2 + 1 - alpha_bar
    noise = (1 - alpha_bar).sqrt() * (x - alpha_bar.sqrt() * MEAN) / variance
    return torch.cat([noise, -torch.ones_like(x)], dim=1)


def sample(algorithm: str, steps: int, images: int = 8, **kwargs) -> torch.Tensor:
    generators = [image_generator(0, i) for i in range(images)]
    noise = initial_noise(generators, (16, 16, 16))
    return sample_latents(
        gaussian_network, noise, torch.zeros(images, 1, 4), None, steps, 1.0, algorithm, generators, **kwargs
    )


DISTRIBUTIONS = [
    *(("dpm-solver", 50), ("dpm-solver-3", 50), ("unipc", 50), ("ddim", 250), ("sa-solver", 50), ("iddpm", 250)),
]


@pytest.mark.parametrize(("algorithm", "steps"), DISTRIBUTIONS)
def test_samples_have_the_distribution_of_the_data(algorithm, steps):
    latents = sample(algorithm, steps)
    assert latents.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert latents.std().item() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("spacing", ["karras", "karras:3", "log-snr", "999,800,600,400,200,50,10,1"])
@pytest.mark.parametrize("algorithm", SPACED)
def test_steps_may_lie_elsewhere(algorithm, spacing):
    """The end is the same distribution, at the same lowest noise level."""
    steps = 250 if algorithm == "ddim" else 50
    latents = sample(algorithm, steps, spacing=spacing)
    assert latents.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert latents.std().item() == pytest.approx(STD, rel=0.04)


def test_uniform_steps_are_those_that_solvers_place_themselves():
    for algorithm in SPACED:
        own = prepare_scheduler(algorithm, 12)
        given = prepare_scheduler(algorithm, 12, spacing=",".join(str(int(t)) for t in own.timesteps))
        assert torch.equal(own.timesteps, given.timesteps)
        torch.testing.assert_close(own.sigmas, given.sigmas, rtol=1e-4, atol=0)


def test_algorithms_that_place_their_steps_themselves_refuse_others():
    with pytest.raises(InputError, match="iddpm places its steps itself: --spacing karras goes with dpm-solver, "):
        prepare_scheduler("iddpm", 10, spacing="karras")


def test_ddim_is_the_closed_form():
    """x' = sqrt(a') x0 + sqrt(1 - a') eps, step by step (Song et al. 2021, equation 12 without noise)."""
    steps = 12
    times = [int(t) for t in prepare_scheduler("ddim", steps).timesteps] + [0]
    x = initial_noise([image_generator(0, i) for i in range(2)], (16, 16, 16))
    for t, after in pairwise(times):
        noise = gaussian_network(x, torch.full((2,), t), None)[:, :16]
        x0 = (x - (1 - ALPHA_BAR[t]).sqrt() * noise) / ALPHA_BAR[t].sqrt()
        x = ALPHA_BAR[after].sqrt() * x0 + (1 - ALPHA_BAR[after]).sqrt() * noise
    torch.testing.assert_close(sample("ddim", steps, images=2), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_network_of_velocities_samples_the_same(algorithm):
    def velocities(x, timestep, y):
        noise, variance = gaussian_network(x, timestep, y).chunk(2, dim=1)
        alpha_bar = ALPHA_BAR[timestep].view(-1, 1, 1, 1)
        return torch.cat([(noise - (1 - alpha_bar).sqrt() * x) / alpha_bar.sqrt(), variance], dim=1)

    generators = [image_generator(0, i) for i in range(2)]
    noise, y = initial_noise(generators, (16, 16, 16)), torch.zeros(2, 1, 4)
    arguments = (noise, y, None, 10, 1.0, algorithm)
    latents = sample_latents(velocities, *arguments, generators, prediction_type="v_prediction")
    torch.testing.assert_close(latents, sample(algorithm, 10, images=2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_image_depends_on_its_own_generator_alone(algorithm):
    together, alone = sample(algorithm, 6, images=4), sample(algorithm, 6, images=1)
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_generators_differ_between_seeds_and_images():
    draws = {torch.randn(1, generator=image_generator(seed, i)).item() for seed in range(3) for i in range(3)}
    assert len(draws) == 9


@pytest.mark.parametrize(
    "algorithm", sorted(set(ALGORITHMS) - {"lcm"})
)  # which forgets all but its last step's guidance
def test_guidance_is_limited_to_an_interval_of_noise_levels(algorithm):
    """Inside it the null pass is run and counts, outside it is not run; everywhere is the same as no interval."""
    levels, calls = linear_schedule().noise_levels, []

    def network(x, timestep, y):
        calls.append((len(x), int(timestep[0])))
        return gaussian_network(x, timestep, y) + y[:, :1, :1, None]

    def latents(interval, guidance=3.0):
        calls.clear()
        noise, y, null = torch.ones(1, 16, 2, 2), torch.full((1, 1, 4), 0.1), torch.zeros(1, 4)
        generators = [image_generator(0, 0)]
        return sample_latents(network, noise, y, null, 10, guidance, algorithm, generators, guidance_interval=interval)

    low, high = 0.3, 5.0
    inside = latents((low, high))
    assert {count for count, t in calls if low <= levels[t] <= high} == {2}
    assert {count for count, t in calls if not low <= levels[t] <= high} == {1}
    everywhere, nowhere = latents(None), latents((149.0, 150.0))
    assert torch.equal(latents((0.0, 1000.0)), everywhere) and torch.equal(latents(None, guidance=1.0), nowhere)
    assert (inside - everywhere).abs().min() > 1e-3 and (inside - nowhere).abs().min() > 1e-3


def test_on_step_sees_every_step_and_may_replace_latents():
    seen = []

    def watch(i, t, x):
        seen.append((i, int(t)))
        return torch.zeros_like(x) if i == 4 else None

    latents = sample_latents(
        gaussian_network, torch.ones(1, 16, 2, 2), torch.zeros(1, 1, 4), None, 5, 1.0, "ddim", on_step=watch
    )
    assert [i for i, _ in seen] == [0, 1, 2, 3, 4] and sorted(seen, key=lambda each: -each[1]) == seen
    assert torch.all(latents == 0)


def test_schedulers_have_the_betas_of_training():
    for algorithm in ALGORITHMS:
        betas = prepare_scheduler(algorithm, 10).betas.double()
        torch.testing.assert_close(betas, linear_schedule().betas, rtol=1e-5, atol=0)


def test_iddpm_uses_the_learned_variance():
    """With the variance at its upper bound the samples spread more than with the lower one."""

    def wide(x, timestep, y):
        output = gaussian_network(x, timestep, y)
        return torch.cat([output[:, :16], torch.ones_like(x)], dim=1)

    generators = [image_generator(0, i) for i in range(4)]
    noise = initial_noise(generators, (16, 16, 16))
    spread = sample_latents(wide, noise, torch.zeros(4, 1, 4), None, 10, 1.0, "iddpm", generators).std()
    assert spread > 1.02 * sample("iddpm", 10, images=4).std()


@pytest.mark.parametrize("interval", [(5.0, 0.3), (-1.0, 2.0), (200.0, 300.0), (0.001, 0.002)])
def test_intervals_without_noise_levels_raise(interval):
    with pytest.raises(InputError, match="there are those from 0.01 to 157"):
        check_guidance_interval(interval)


def test_every_solver_that_the_command_line_offers_can_be_built():
    assert tuple(ALGORITHMS) == (*SOLVERS, CONSISTENCY_SOLVER)


def test_unknown_algorithms_and_impossible_steps_raise():
    with pytest.raises(InputError, match="known are dpm-solver"):
        prepare_scheduler("euler", 20)
    with pytest.raises(InputError, match="expected 1 to 1000"):
        prepare_scheduler("ddim", 0)
    for algorithm, steps in (("dpm-solver", 1000), ("iddpm", 1)):
        with pytest.raises(InputError, match=f"cannot take {steps} steps"):
            prepare_scheduler(algorithm, steps)


@pytest.mark.parametrize("algorithm", ["dpm-solver", "ddim", "sa-solver", "iddpm"])
def test_samples_that_start_from_latents(algorithm):
    """For Gaussian data the mean goes from the start's to the data's as the strength grows; at 1 it is the plain sample."""
    start = torch.full((8, 16, 16, 16), 5.0)
    means = [sample(algorithm, 50, start=Start(start, strength)).mean().item() for strength in (0.02, 0.3, 0.6, 1.0)]
    assert means[0] > means[1] > means[2] > means[3] - 0.02 and means[0] == pytest.approx(5.0, abs=0.2)
    assert means[3] == pytest.approx(sample(algorithm, 50).mean().item(), abs=0.02)
    if algorithm in ("dpm-solver", "ddim"):
        assert torch.equal(sample(algorithm, 50, start=Start(start, 1.0)), sample(algorithm, 50))
        level = prepare_scheduler(algorithm, 50).timesteps[-25].long()  # of the first step that is left
        kept = ALPHA_BAR[level] * STD**2
        # the exact flow keeps the distance from the data's mean but for what noise has hidden: x0 - mean shrinks by this
        expected = MEAN + (5.0 - MEAN) * ALPHA_BAR[level].sqrt() * STD / (kept + 1 - ALPHA_BAR[level]).sqrt()
        found = sample(algorithm, 50, start=Start(start, 0.5)).mean().item()
        assert found == pytest.approx(expected.item(), rel=0.05)
    with pytest.raises(InputError, match="strength 0: expected more than 0"):
        Start(start, 0)
