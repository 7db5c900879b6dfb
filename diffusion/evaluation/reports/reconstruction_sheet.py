"""The sheet of reconstructions: the best, median and worst windows by each codec, and the differences.

Letters: B windows, S their side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.evaluation.reconstruction import CodecQuality
from diffusion.evaluation.sets.random_windows import RandomWindows

AMPLIFICATION = 4  # of the differences shown
CELL = 256  # pixels a side of a picture on the sheet


def choose_examples(values: np.ndarray, count: int) -> dict[int, str]:
    """Return the numbers of the best, median and worst windows, up to `count` of each, with the kind of each."""
    order = np.argsort(-values, kind="stable").tolist()
    count = min(count, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    chosen = {"best": order[:count], "median": order[middle : middle + count], "worst": order[len(order) - count :]}
    kinds: dict[int, str] = {}
    for kind, numbers in chosen.items():
        for number in numbers:
            kinds.setdefault(number, kind)  # of two windows none is the median
    return kinds


def build_sheet_rows(
    windows: RandomWindows,
    kinds: Mapping[int, str],
    reconstructions: Mapping[str, torch.Tensor],
    qualities: Sequence[CodecQuality],
) -> list[list[tuple[str, torch.Tensor]]]:
    """Return a row for each window: the original, each codec's reconstruction, and the amplified differences, with labels.

    kinds: the kind of each window shown, by its number. reconstructions: of these by each codec, uint8 (B, 3, S, S).
    """
    rows, originals = [], windows.read(list(kinds))
    for i, (number, kind) in enumerate(kinds.items()):
        name, left, top = windows.places[number]
        row = [(f"{Path(name).with_suffix('')} ({left}, {top}): {kind}", center_view(originals[i]))]
        for quality in qualities:
            values = f"{quality.per_window['psnr'][number]:.1f} dB, SSIM {quality.per_window['ssim'][number]:.3f}"
            row.append((f"{quality.codec}: {values}", center_view(reconstructions[quality.codec][i])))
        for quality in qualities:
            label = f"{quality.codec}: difference x {AMPLIFICATION}"
            row.append((label, center_view(amplified_difference(originals[i], reconstructions[quality.codec][i]))))
        rows.append(row)
    return rows


def amplified_difference(original: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """Return the difference of pictures, uint8 (3, S, S), AMPLIFICATION times, about grey: lighter where the codec is lighter."""
    difference = reconstruction.int() - original.int()
    return (128 + AMPLIFICATION * difference).clamp(0, 255).to(torch.uint8)


def center_view(picture: torch.Tensor) -> torch.Tensor:
    """Return the central CELL pixels of a large picture, unscaled since losses are small, or a small one in large pixels."""
    side = picture.shape[-1]
    if side > CELL:
        first = (side - CELL) // 2
        return picture[:, first : first + CELL, first : first + CELL]
    return F.interpolate(picture[None], scale_factor=CELL // side, mode="nearest")[0]
