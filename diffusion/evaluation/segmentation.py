"""What synthetic pairs of image and mask are worth: a small network segments nuclei, trained on some pairs, tested on real ones.

The protocol of PixCell's paper (Lizard). Letters: N training and M test windows, B batch, S side, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from diffusion.data.nuclei.segmentation import split_touching
from diffusion.evaluation.metrics.cells import compare_segmentations
from diffusion.evaluation.metrics.intervals import ClusterBootstrap, Value, percentile_value
from diffusion.evaluation.sets.masked_images import MaskedImages

MEASURES = {"dice": "Dice", "aji": "AJI", "pq": "PQ"}
WIDTHS = (16, 32, 64, 128)  # channels from the finest scale to the coarsest: 0.5 M numbers
LEARNING_RATE = 2e-3
BRIGHTNESS = 0.15  # by which each colour channel is multiplied at random, so that one staining is not learned by heart


class UNet(nn.Module):
    """Predict whether a pixel is within a nucleus (Ronneberger et al. 2015, with padding and batch normalisation)."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(_two_convolutions(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.out = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, S, S) of images (B, 3, S, S), whose sides 8 divides."""
        kept = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for block, finer in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), finer], dim=1))
        return self.out(x)[:, 0]


def _two_convolutions(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (channels, width):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class TrainingOptions:
    """How the network is trained: as many steps on every set, so that a larger one is not looked at for longer."""

    steps: int = 400
    batch_size: int = 8
    seed: int = 0
    mpp: float = 0.5


def train_segmenter(
    pairs: MaskedImages,
    options: TrainingOptions,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> UNet:
    """Train a network on pairs, turned, mirrored and recoloured at random; return it in eval mode. on_step: called after each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = UNet()
    network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, options.steps + 1)
    random = np.random.default_rng(options.seed)
    for _ in range(options.steps):
        images, inside = draw_batch(pairs, options.batch_size, random)
        logits = network(images.to(device))
        loss = segmentation_loss(logits, inside.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        on_step()
    return network.eval()


def draw_batch(pairs: MaskedImages, count: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw pairs, each in one of 8 orientations and recoloured: images (B, 3, S, S), masks (B, S, S), float32."""
    images, masks = [], []
    for i in random.integers(0, len(pairs), count):
        pixels, mask = pairs.pixels[i].astype(np.float32), pairs.labels[i] > 0
        turns, mirrored = int(random.integers(0, 4)), random.random() < 0.5
        pixels, mask = np.rot90(pixels, turns), np.rot90(mask, turns)
        if mirrored:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
        colours = random.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS, 3).astype(np.float32)
        images.append(np.clip(pixels * colours, 0, 255))
        masks.append(mask)
    return as_network_input(np.stack(images)), torch.from_numpy(np.stack(masks).astype(np.float32))


def as_network_input(pixels: np.ndarray) -> torch.Tensor:
    """Return pixels (B, S, S, 3) of 0 to 255 as the network takes them, (B, 3, S, S) in -1 to 1."""
    return (torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )


def segmentation_loss(logits: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return cross entropy and 1 less the Dice overlap of probabilities, of logits and masks (B, S, S)."""
    probabilities = torch.sigmoid(logits)
    overlap = 2 * (probabilities * inside).sum() / (probabilities.sum() + inside.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, inside) + 1 - overlap


@torch.inference_mode()
def segment(network: UNet, pixels: np.ndarray, mpp: float, device: torch.device | str = "cpu") -> np.ndarray:
    """Return the nuclei that a network finds in windows, uint8 (M, S, S, 3), as numbers (M, S, S)."""
    found = []
    for first in range(0, len(pixels), 16):
        logits = network(as_network_input(pixels[first : first + 16]).to(device))
        found += [split_touching(inside, mpp) for inside in (logits > 0).cpu().numpy()]
    return np.stack(found)


@dataclass(frozen=True)
class SegmentationResult:
    """The scores on the test set of a network trained on one set. count: its windows. resampled: means by measure, (1 + R,) each."""

    training: str
    count: int
    resampled: Mapping[str, np.ndarray]

    def values(self) -> dict[str, Value]:
        """Return the mean of each measure with its interval."""
        return {name: percentile_value(values) for name, values in self.resampled.items()}

    def difference_to(self, other: SegmentationResult) -> dict[str, Value]:
        """Return how much better each measure is than another network's, on the same resamples."""
        return {name: percentile_value(values - other.resampled[name]) for name, values in self.resampled.items()}


def score_segmenter(training: str, count: int, found: np.ndarray, test: MaskedImages, seed: int) -> SegmentationResult:
    """Score what was found in the test windows, with resamples of whole slides."""
    agreements = [compare_segmentations(*pair) for pair in zip(test.labels, found, strict=True)]
    weights = np.stack(list(ClusterBootstrap(test.slides, seed)))
    resampled = {
        name: weights @ np.array([getattr(each, name) for each in agreements]) / weights.sum(1) for name in MEASURES
    }
    return SegmentationResult(training, count, resampled)


def probe_segmentation(
    sets: Mapping[str, MaskedImages],
    test: MaskedImages,
    options: TrainingOptions,
    device: torch.device | str = "cpu",
    on_step: Callable[[], object] = lambda: None,
) -> tuple[list[SegmentationResult], dict[str, np.ndarray]]:
    """Train on each set, and score all on one test set; return the results, and what each network found there."""
    results, found = [], {}
    for name, pairs in sets.items():
        network = train_segmenter(pairs, options, device, on_step)
        found[name] = segment(network, test.pixels, options.mpp, device)
        results.append(score_segmenter(name, len(pairs), found[name], test, options.seed))
    return results, found
