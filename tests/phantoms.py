"""Pictures of tissue whose nuclei are known."""

from __future__ import annotations

import numpy as np


def phantom(nuclei: int, size: int = 256, seed: int = 0, radius: float = 7.0) -> tuple[np.ndarray, np.ndarray]:
    """Tissue of pink with blue discs that do not touch: uint8 (S, S, 3), and their labels."""
    random, labels, centres = np.random.default_rng(seed), np.zeros((size, size), int), []
    rows, columns = np.mgrid[:size, :size]
    while len(centres) < nuclei:
        centre = random.uniform(radius + 1, size - radius - 1, 2)
        if all(np.hypot(*(centre - other)) > 2 * radius + 2 for other in centres):
            centres.append(centre)
            labels[np.hypot(rows - centre[0], columns - centre[1]) <= radius] = len(centres)
    pixels = np.where((labels > 0)[..., None], (90, 60, 140), (235, 190, 210)) + random.normal(0, 6, (size, size, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


def ihc_phantom(
    nuclei: int,
    positive: int,
    seed: int = 0,
    haematoxylin: float = 0.6,
    dab: float = 0.9,
    noise: float = 6.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tissue in immunohistochemistry: uint8 (256, 256, 3), the labels of its nuclei, and where they are brown.

    The first `positive` nuclei are brown, the others blue. haematoxylin, dab: their optical densities, each nucleus's up to 30 % off.
    """
    from skimage.color import hed2rgb

    random = np.random.default_rng(seed + 1000)
    labels = phantom(nuclei, seed=seed)[1]
    brown = (labels > 0) & (labels <= positive)
    amounts = random.uniform(0.7, 1.3, nuclei + 1)[labels]
    densities = np.zeros((*labels.shape, 3))
    densities[..., 0] = np.where(labels == 0, 0.08, np.where(brown, 0.2, haematoxylin * amounts))  # DAB hides the rest
    densities[..., 2] = np.where(brown, dab * amounts, 0.02)
    pixels = 255 * hed2rgb(densities / 6.0) + random.normal(0, noise, densities.shape)  # 6 decades are 1 in skimage
    return pixels.clip(0, 255).astype(np.uint8), labels, brown
