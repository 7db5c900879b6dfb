"""Inpainting: what is kept stays, with the noise of every level, and what changes is sampled."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from diffusion.inpainting import KnownLatents, change_of_cells, clean_between
from diffusion.sampling import ALGORITHMS, Start, denoise, prepare_scheduler, sample_latents
from diffusion.schedule import add_noise, linear_schedule


def test_a_cell_changes_when_any_of_its_pixels_does():
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[0, 7, 15] = mask[0, 16, 16] = True
    change = change_of_cells(mask)
    assert change.shape == (1, 1, 3, 3)
    assert change[0, 0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("start", [None, 0.5])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "euler"])
def test_what_is_known_is_kept_to_the_bit_and_seen_with_noise_at_every_step(algorithm, start):
    """Also by Euler's scheduler of diffusers, which counts noise otherwise, and begun at what is known."""
    torch.manual_seed(0)
    noise, latents = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    change = torch.zeros(2, 1, 4, 4)
    change[:, :, :, 2:] = 1
    alpha_bar, seen = linear_schedule().alpha_bar, []

    def network(x, timestep, y):
        seen.append((int(timestep[0]), x))
        return torch.cat([0.1 * x, torch.zeros_like(x)], dim=1) if algorithm != "euler" else 0.1 * x

    if algorithm == "euler":
        scheduler = EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
        scheduler.set_timesteps(6)
    else:
        scheduler = prepare_scheduler(algorithm, 6)
    result = denoise(
        network,
        scheduler,
        noise,
        torch.zeros(2, 1, 8),
        None,
        1.0,
        generators=[torch.Generator().manual_seed(n) for n in range(2)],
        start=None if start is None else Start(latents, start),
        known=KnownLatents(latents, change),
    )
    assert torch.equal(result[..., :2], latents[..., :2])
    assert not torch.isclose(result[..., 2:], latents[..., 2:]).any()
    for number, (step, x) in enumerate(seen):
        level = alpha_bar[step].float()
        expected = level.sqrt() * latents + (1 - level).sqrt() * noise
        seen_columns = slice(None) if number == 0 and start is not None else slice(2)
        assert torch.allclose(x[..., seen_columns], expected[..., seen_columns], atol=1e-4), step


def test_a_picture_is_begun_at_while_a_part_of_it_is_kept():
    torch.manual_seed(0)
    noise, latents = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    change = torch.zeros(1, 1, 4, 4)
    change[..., :2, :] = 1

    def sample(strength):
        return sample_latents(
            lambda x, t, y: 0.1 * x,
            noise,
            torch.zeros(1, 1, 8),
            None,
            10,
            1.0,
            start=Start(latents, strength),
            known=KnownLatents(latents, change),
        )

    weak, strong = (sample(strength) for strength in (0.2, 0.9))
    assert torch.equal(weak[..., 2:, :], latents[..., 2:, :])
    distances = [(each - latents).abs().mean() for each in (weak, strong)]
    assert 0 < distances[0] < distances[1]


def test_two_steps_in_a_row_agree_on_what_is_clean():
    """Exactly for steps of DDIM with one prediction."""
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    first, second = torch.tensor(900), torch.tensor(700)
    noisy = [add_noise(linear_schedule(), clean, noise, step.expand(2)) for step in (first, second)]
    assert torch.allclose(clean_between(noisy[0], first, noisy[1], second), clean, atol=1e-4)


def test_a_change_of_other_cells_is_refused():
    with pytest.raises(ValueError, match="expected \\(1, 1, 4, 4\\)"):
        KnownLatents(torch.zeros(1, 4, 4, 4), torch.zeros(1, 1, 8, 8))
