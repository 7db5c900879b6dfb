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
