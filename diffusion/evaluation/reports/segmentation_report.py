"""The results of the segmentation probe as tables, JSON, CSV, and a picture of what each network found."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion.evaluation.reports.mask_sheet import COLUMNS, label_picture, window_grid
from diffusion.evaluation.reports.page import png_bytes
from diffusion.evaluation.reports.probe_report import DIFFERENCES, format_value
from diffusion.evaluation.segmentation import MEASURES, SegmentationResult
from diffusion.evaluation.sets.masked_images import MaskedImages
from diffusion.utils.files import atomic_write_bytes

Results = Sequence[SegmentationResult]


def score_rows(results: Results) -> list[tuple[str, ...]]:
    """Return a table of all scores, its head first."""
    rows = [("trained on", "windows", *MEASURES.values())]
    rows += [(each.training, str(each.count), *map(format_value, each.values().values())) for each in results]
    return rows


def difference_rows(results: Results) -> list[tuple[str, ...]]:
    """Return a table of the differences between training sets, its head first; empty where there is one set."""
    rows = [
        (f"{one} - {other}", *(format_value(value, "+") for value in values.values()))
        for one, other, values in differences(results)
    ]
    return [("difference", *MEASURES.values()), *rows] if rows else []


def differences(results: Results) -> list[tuple[str, str, dict[str, Any]]]:
    """Return what training on more or on other pairs changes."""
    found = {each.training: each for each in results}
    return [
        (one, other, found[one].difference_to(found[other]))
        for one, other in DIFFERENCES
        if one in found and other in found
    ]


def write_segmentation_report(
    out: Path, about: Mapping[str, Any], results: Results, test: MaskedImages, found: Mapping[str, np.ndarray]
) -> None:
    """Write scores.json, scores.csv and examples.png into a folder. about: what scores.json has beside the scores."""
    record = {
        **about,
        "scores": [
            {"training": each.training, "windows": each.count}
            | {name: value._asdict() for name, value in each.values().items()}
            for each in results
        ],
        "differences": [
            {"of": f"{one} - {other}", **{name: value._asdict() for name, value in values.items()}}
            for one, other, values in differences(results)
        ],
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["training", "windows", *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high"))])
    for each in results:
        writer.writerow([each.training, each.count, *(part for value in each.values().values() for part in value)])
    contents = {
        "examples.png": png_bytes(draw_examples(test, found)),
        "scores.csv": text.getvalue().encode(),
        "scores.json": (json.dumps(record, indent=2) + "\n").encode(),
    }
    for name, content in contents.items():
        atomic_write_bytes(out / name, content)


def draw_examples(test: MaskedImages, found: Mapping[str, np.ndarray]) -> Image.Image:
    """Return a picture of some test windows, from above: image, mask, and what each network found."""
    chosen = np.unique(np.linspace(0, len(test) - 1, min(COLUMNS, len(test))).round().astype(int)).tolist()
    labels = (test.labels, *found.values())
    return window_grid([[test.pixels[i], *(label_picture(each[i]) for each in labels)] for i in chosen])
