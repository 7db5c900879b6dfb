"""Pictures of reconstructions: the best, middle and worst windows, what each codec makes of them, and the differences.

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

AMPLIFICATION = 4  # of the differences that are drawn
CELL = 256  # pixels a side


def choose_examples(values: np.ndarray, count: int) -> dict[int, str]:
    """Numbers of the best, middle and worst windows, up to `count` of each, and which of these they are."""
    order = np.argsort(-values, kind="stable").tolist()
    count = min(count, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    chosen = {"best": order[:count], "median": order[middle : middle + count], "worst": order[len(order) - count :]}
    kinds: dict[int, str] = {}
    for kind, numbers in chosen.items():
        for number in numbers:
            kinds.setdefault(number, kind)  # two windows have no third in their middle
    return kinds


def build_sheet_rows(
    windows: RandomWindows,
    kinds: Mapping[int, str],
    made: Mapping[str, torch.Tensor],
    qualities: Sequence[CodecQuality],
) -> list[list[tuple[str, torch.Tensor]]]:
    """A row a window: the original, what each codec makes of it, and the amplified differences; each with its label.

    kinds: what to say of each of some windows, by their numbers. made: of these by each codec, uint8 (B, 3, S, S).
    """
    rows, originals = [], windows.read(list(kinds))
    for i, (number, kind) in enumerate(kinds.items()):
        name, left, top = windows.places[number]
        row = [(f"{Path(name).with_suffix('')} ({left}, {top}): {kind}", center_view(originals[i]))]
        for quality in qualities:
            values = f"{quality.per_window['psnr'][number]:.1f} dB, SSIM {quality.per_window['ssim'][number]:.3f}"
            row.append((f"{quality.codec}: {values}", center_view(made[quality.codec][i])))
        for quality in qualities:
            label = f"{quality.codec}: difference x {AMPLIFICATION}"
            row.append((label, center_view(amplified_difference(originals[i], made[quality.codec][i]))))
        rows.append(row)
    return rows


def amplified_difference(original: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """The difference of pictures, uint8 (3, S, S), AMPLIFIED times, about grey: lighter is where a codec is."""
    difference = reconstruction.int() - original.int()
    return (128 + AMPLIFICATION * difference).clamp(0, 255).to(torch.uint8)


def center_view(picture: torch.Tensor) -> torch.Tensor:
    """The middle of a large picture, pixel by pixel, for what a codec loses is as small; a small one in large pixels."""
    side = picture.shape[-1]
    if side > CELL:
        first = (side - CELL) // 2
        return picture[:, first : first + CELL, first : first + CELL]
    return F.interpolate(picture[None], scale_factor=CELL // side, mode="nearest")[0]
