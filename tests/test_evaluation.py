"""Distances against closed forms and scipy; features of folders; the report."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.encoders.embedders import PatchEmbedder
from diffusion.errors import InputError, MissingError
from diffusion.evaluation.distances import frechet_distance
from diffusion.evaluation.features import embed_images, list_images


def gaussian_with(mean: torch.Tensor, covariance: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Samples (samples, D) whose own mean and unbiased covariance are exactly these."""
    noise = torch.randn(samples, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise = noise - noise.mean(0)
    whitened = noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T
    return whitened @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    sigma_a, sigma_b = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([2.0, 2.0, 1.5, 0.1]).double()
    mean_a, mean_b = torch.tensor([0.0, 1.0, 100.0, -5.0]).double(), torch.tensor([3.0, 1.0, 96.0, -5.0]).double()
    real = gaussian_with(mean_a, torch.diag(sigma_a**2), 50, seed=1)
    synthetic = gaussian_with(mean_b, torch.diag(sigma_b**2), 70, seed=2)
    expected = float((mean_a - mean_b).square().sum() + (sigma_a - sigma_b).square().sum())
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_agrees_with_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(2, 24, 24, generator=generator)
    real = (torch.randn(200, 24, generator=generator) @ mixing[0] + 7).float()
    synthetic = (torch.randn(150, 24, generator=generator) @ mixing[1] + 6.5).float()
    a, b = real.double().numpy(), synthetic.double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a @ cov_b)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)
    assert frechet_distance(real, synthetic) == pytest.approx(expected, rel=1e-4)


def test_a_set_has_no_distance_to_itself_and_the_same_both_ways():
    generator = torch.Generator().manual_seed(4)
    few = torch.randn(20, 64, generator=generator) * 3 + 50  # fewer samples than features: singular covariances
    other = torch.randn(20, 64, generator=generator) + 50
    scale = float(torch.cov(few.T).trace())
    assert frechet_distance(few, few) < 1e-6 * scale
    assert frechet_distance(few, other) > 0.1 * scale
    assert frechet_distance(few, other) == pytest.approx(frechet_distance(other, few), rel=1e-6)


def test_unusable_features_are_refused():
    good = torch.randn(5, 3)
    for real, synthetic, message in (
        (good[:1], good, r"real features \(1, 3\), expected at least 2"),
        (good, good[:1], "synthetic features"),
        (good, torch.randn(5, 4), "3 wide, synthetic ones 4"),
        (good, good.where(good > 0, torch.nan), "not finite"),
        (good.flatten(), good, "expected at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            frechet_distance(real, synthetic)


class MeanColour(torch.nn.Module):
    """A network whose answer is known: the mean of each normalised channel."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x.mean((2, 3))


@pytest.fixture
def embedder() -> PatchEmbedder:
    return PatchEmbedder(MeanColour(), "mean colour", width=3)


def plain(colour: tuple[int, int, int], size: int = 256) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def test_features_come_in_name_order(tmp_path, embedder):
    (tmp_path / "b").mkdir()
    for name, red in (("b/0.png", 10), ("a.jpeg", 20), ("c.png", 30), ("a_1.PNG", 40), (".d.png", 50), ("e.txt", 60)):
        plain((red, 0, 0)).save(tmp_path / name, format="PNG")
    images = list_images(tmp_path)
    assert list(images) == ["a", "a_1", "b/0", "c"]
    features = embed_images(list(images.values()), embedder, batch_size=3)
    assert features.shape == (4, 3) and features.dtype == torch.float32
    torch.testing.assert_close(features[:, 0] * 0.229 + 0.485, torch.tensor([20, 40, 10, 30]) / 255, rtol=0, atol=1e-5)


def test_folders_that_cannot_be_scored_are_refused(tmp_path, embedder):
    with pytest.raises(MissingError, match="no folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="no image"):
        list_images(tmp_path)
    plain((1, 2, 3)).save(tmp_path / "a.png")
    plain((1, 2, 3), size=224).save(tmp_path / "b.png")
    with pytest.raises(InputError, match="b.png has 224 x 224 pixels, expected 256 x 256"):
        embed_images(list(list_images(tmp_path).values()), embedder)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="c.png is no image"):
        embed_images([tmp_path / "c.png"], embedder)
    plain((1, 2, 3)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="have one name"):
        list_images(tmp_path)
