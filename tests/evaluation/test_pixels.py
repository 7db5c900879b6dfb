"""PSNR and SSIM against closed forms and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import texture

from diffusion.evaluation.metrics.pixels import psnr, ssim


@pytest.mark.parametrize("shift", [1, 3, 20])
def test_psnr_of_a_known_error(shift):
    original = np.asarray(texture(64, seed=0)) // 2
    assert psnr(original, original + np.uint8(shift)) == pytest.approx(20 * np.log10(255 / shift), abs=1e-9)
    one_channel = original.copy()
    one_channel[..., 1] += np.uint8(shift)
    expected = 20 * np.log10(255 / shift) + 10 * np.log10(3)
    assert psnr(original, one_channel) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_identical_pictures_is_finite():
    """That of rounding noise, which is uniform in a half to either side: its mean square is 1/12."""
    original = np.asarray(texture(64, seed=0))
    random = np.random.default_rng(0).uniform(-0.5, 0.5, 10**6)
    assert psnr(original, original) == pytest.approx(10 * np.log10(255**2 / np.square(random).mean()), abs=0.02)
    almost = original.copy()
    almost[0, 0, 0] ^= 1
    assert psnr(original, almost) == psnr(original, original)


def test_ssim_agrees_with_torchmetrics():
    """Which counts the border, too, with mirrored pixels beyond it; the two have in common what lies inside."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    original = np.asarray(texture(64, seed=0))
    noise = np.random.default_rng(0).normal(0, 12, original.shape)
    other = (original + noise).clip(0, 255).astype(np.uint8)
    tensors = [torch.tensor(array).permute(2, 0, 1)[None].double() for array in (other, original)]
    _, of_each = structural_similarity_index_measure(*tensors, data_range=255.0, sigma=1.5, return_full_image=True)
    assert 0.2 < ssim(original, other) < 0.9
    assert ssim(original, other) == pytest.approx(of_each[..., 5:-5, 5:-5].mean().item(), abs=1e-9)
    assert ssim(original, original) == 1


def test_ssim_of_flat_pictures():
    """Without structure, what is left is the comparison of means (Wang et al. 2004, equation 6)."""
    a, b, c = 100, 130, (0.01 * 255) ** 2
    pictures = [np.full((32, 32, 3), value, np.uint8) for value in (a, b)]
    assert ssim(*pictures) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-9)
