"""Data for tests of scores: rows of features, images of one colour, labelled rows, curves in TensorBoard files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import texture
from PIL import Image

from diffusion.encoders.networks import View
from diffusion.evaluation.sets.features import Features
from diffusion.evaluation.sets.labelled import LabelledEmbeddings


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_with(mean: torch.Tensor, covariance: torch.Tensor, samples: int, seed: int) -> torch.Tensor:
    """Samples (samples, D) whose own mean and unbiased covariance are exactly these."""
    noise = torch.randn(samples, len(mean), generator=seeded(seed), dtype=torch.float64)
    noise = noise - noise.mean(0)
    whitened = noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T
    return whitened @ torch.linalg.cholesky(covariance).T + mean


def correlated(rows: int, width: int, seed: int, offset: float = 0.0) -> torch.Tensor:
    mixing = torch.randn(width, width, generator=seeded(100 + seed))
    return torch.randn(rows, width, generator=seeded(seed)) @ mixing / width**0.5 + offset


class MeanColour(torch.nn.Module):
    """A network whose answer is known: the mean of each channel. It counts the images that it sees."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return x.mean((2, 3))


class PaddedColour(MeanColour):
    """The mean colour and a zero: networks with positions take a multiple of four values."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(super().forward(windows), (0, 1))


PLAIN = View(size=None, mean=(0, 0, 0), std=(1 / 255,) * 3)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (256, 256)) -> Image.Image:
    return Image.new("RGB", size, colour)


def folder_of(path: Path, reds: list[int], suffix: str = "png") -> Path:
    path.mkdir(parents=True)
    for i, red in enumerate(reds):
        plain((red, 7, 7)).save(path / f"patch_{i}.{suffix}")
    return path


def reds_of(features: Features) -> list[float]:
    return [round(float(value), 3) for part in features for value in part[:, 0]]


def write_events(folder: Path, scalars: dict[str, dict[int, float]], written_at: float = 0.0) -> Path:
    """Write a TensorBoard file of curves (tag -> step -> value) into a work dir, as the trainer leaves it."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard"), filename_suffix=f".{written_at:.0f}") as writer:
        for tag, values in scalars.items():
            for step, value in values.items():
                writer.add_scalar(tag, value, step, walltime=written_at + step)
    return folder


def gaussians(count: int, apart: float, seed: int, width: int = 6, groups: int = 0) -> LabelledEmbeddings:
    """`count` rows of each class around means that lie `apart`; in groups of their own, or one for each row."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), count)
    features = random.normal(size=(3 * count, width)) + apart * np.eye(3, width)[labels]
    names = np.arange(3 * count) % groups if groups else np.arange(3 * count)
    return LabelledEmbeddings(features.astype(np.float32), labels, names.astype(str))


def write_window_images(folder: Path) -> Path:
    """Write images of 64 and 160 pixels into two folders below this one; no value of the texture is above 250."""
    for i, size in enumerate((64, 64, 64, 160)):
        path = folder / f"slide_{i % 2}/{i}.png"
        path.parent.mkdir(exist_ok=True)
        texture(size, seed=i).save(path)
    return folder
