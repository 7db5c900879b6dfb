"""The files of a comparison of codecs: the scores, and a sheet of the best, median and worst windows with the differences.

Letters: B windows, S their side in pixels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.encoders.latents import LatentCodec
from diffusion.evaluation.reconstruction import NOTES, CodecQuality, reconstruct
from diffusion.evaluation.sets.random_windows import RandomWindows
from diffusion.utils.files import atomic_write, atomic_write_bytes

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


def draw_sheet(
    codecs: Mapping[str, LatentCodec],
    windows: RandomWindows,
    qualities: Sequence[CodecQuality],
    count: int,
    batch_size: int,
) -> list[list[tuple[str, torch.Tensor]]]:
    """Reconstruct `count` windows of each kind by the first codec, and return the rows of the sheet, as `build_sheet_rows`."""
    kinds = choose_examples(qualities[0].per_window["psnr"], count)
    pictures = windows.read(list(kinds))
    reconstructions = {
        name: torch.cat([reconstruct(codec, part) for part in pictures.split(batch_size)])
        for name, codec in codecs.items()
    }
    return build_sheet_rows(windows, kinds, reconstructions, qualities)


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


def write_scores(
    out: Path,
    qualities: Sequence[CodecQuality],
    weights: Mapping[str, str],
    windows: RandomWindows,
    about: Mapping[str, Any],
) -> None:
    """Write scores.csv, a row a codec, and scores.json into a folder.

    weights: a fingerprint of each codec's. about: what scores.json has beside the scores.
    """
    rows = [quality.to_row() for quality in qualities]
    with atomic_write(out / "scores.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    scores = {
        **about,
        "codecs": {each.codec: {"weights": weights[each.codec], **each.to_dict()} for each in qualities},
        "less_the_first": {
            each.codec: {name: value._asdict() for name, value in each.difference_to(qualities[0]).items()}
            for each in qualities[1:]
        },
        "notes": NOTES,
        "left_out": windows.bad,
        "windows": [str(place) for place in windows.places],
    }
    atomic_write_bytes(out / "scores.json", (json.dumps(scores, indent=2) + "\n").encode("utf-8"))
