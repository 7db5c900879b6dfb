"""The files of a report: scores.json, pairs.csv, a picture of pairs, and the page that shows everything."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion.evaluation.measure import (
    REAL,
    SYNTHETIC,
    TRAINING,
    CellOptions,
    EncoderScores,
    Source,
    scores_by_encoder,
)
from diffusion.evaluation.metrics.intervals import Value
from diffusion.evaluation.metrics.quantities import QUANTITIES, SHOWN
from diffusion.evaluation.reports import charts, page
from diffusion.evaluation.reports.curves import Curve, read_curves
from diffusion.evaluation.reports.mask_sheet import mask_grid, stain_grid
from diffusion.evaluation.sets import cells, stain
from diffusion.evaluation.sets.embedding import Timing
from diffusion.evaluation.sets.features import Row
from diffusion.evaluation.sets.image_set import ImageSet, load_window
from diffusion.evaluation.sets.provenance import package_versions
from diffusion.formats import MEASURED_METRICS
from diffusion.utils.assets import ASSETS
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write_bytes

TEMPLATE = ASSETS / "report.html.j2"
LOSS, HELD_OUT = "train/loss", "validation/loss"


@dataclass(frozen=True)
class Losses:
    """A run's training loss and, if it took one, its loss on held-out samples."""

    training: Curve
    validation: Curve | None = None


def read_losses(workdir: Path) -> Losses:
    """Read the losses of a work dir from its TensorBoard files. Raises MissingError when there are none, InputError without a loss."""
    curves = read_curves(workdir)
    if LOSS not in curves:
        raise InputError(f"no scalar {LOSS} in {workdir}; there are {', '.join(curves) or 'none'}")
    return Losses(curves[LOSS], curves.get(HELD_OUT))


@dataclass(frozen=True)
class ReportInfo:
    """What a report shows beside the scores. measured: how these were taken, by names; settings: of the samples.
    cells: how nuclei were found, and the masks that they were compared with; None where they were not.
    stain_mpp: microns per pixel of images whose stain was compared; None where it was not."""

    note: str = ""
    seed: int = 0
    measured: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    losses: Losses | None = None
    timing: Timing = field(default_factory=Timing)
    notes: Sequence[str] = ()
    cells: CellOptions | None = None
    stain_mpp: float | None = None


def write_report(
    out: Path, measured: Sequence[EncoderScores], sources: Mapping[str, Source], about: ReportInfo
) -> list[str]:
    """Write everything into a folder, the page last; return the notes on the page."""
    pairs = measured[0].scores.pairs
    notes = [*about.notes, *gather_notes(measured)]
    grid = None
    images = image_sets(sources)
    if pairs is not None and images:
        chosen = page.draw_pairs(pairs, about.seed)
        windows = [[_window(images[kind], row) for row in chosen] for kind in (REAL, SYNTHETIC)]
        grid = page.png_bytes(page.pairs_grid(*windows))
    masks = None
    if images and about.cells is not None and about.cells.masks is not None:
        masks = page.png_bytes(mask_grid(images, about.cells, about.seed))
    stains = None
    if about.stain_mpp is not None:
        stains = page.png_bytes(stain_grid(images, about.stain_mpp, about.seed))
    pictures = {"masks": masks and page.png_uri(masks), "stains": stains and page.png_uri(stains)}
    content = page.render_page(TEMPLATE, {**page_fields(measured, sources, about, notes), **pictures})
    record = {"encoders": scores_by_encoder(measured), "notes": notes, "note": about.note, "seed": about.seed,
              "images": {kind: _set_fields(kind, measured[0]) for kind in measured[0].features},
              "measured": dict(about.measured), "settings": dict(about.settings), "versions": package_versions()}  # fmt: skip
    if about.losses is not None:
        record["loss"] = _loss_fields(about.losses)
    files = {
        "scores.json": (json.dumps(record, indent=2) + "\n").encode("utf-8"),
        "pairs.csv": pairs_table(measured),
        "pairs.png": grid,
        "cells.csv": measurements_table(measured, cells.CELLS, cells.COLUMNS),
        "stain.csv": measurements_table(measured, stain.STAIN, stain.COLUMNS),
        "masks.png": masks,
        "stain.png": stains,
        "index.html": content,
    }
    for name, written in files.items():
        if written is None:
            (out / name).unlink(missing_ok=True)  # an earlier report's
            continue
        atomic_write_bytes(out / name, written)
    return notes


def image_sets(sources: Mapping[str, Source]) -> dict[str, ImageSet]:
    """Return those sources that are images, by kind: all of them, or none where features were read from files."""
    return {kind: source for kind, source in sources.items() if isinstance(source, ImageSet)}


def gather_notes(measured: Sequence[EncoderScores]) -> list[str]:
    """Return the notes on the sets, and those of each encoder, which is named where there are several, of cells and of stains."""
    notes, several = list(measured[0].notes), len(encoder_parts(measured)) > 1
    for part in measured:
        encoder = part.scores.encoder
        name = f"{encoder}: " if several and encoder not in MEASURED_METRICS else ""
        notes += [name + note for note in part.scores.notes]
    return list(dict.fromkeys(notes))


def pairs_table(measured: Sequence[EncoderScores]) -> bytes | None:
    """Return every pair with its similarity by each encoder, as CSV; None when there are no pairs."""
    pairs = measured[0].scores.pairs
    if pairs is None:
        return None
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    compared = {part.scores.encoder: part.scores.pairs for part in measured if part.scores.pairs is not None}
    table.writerow(["name", "window", *compared])
    by_encoder = [each.similarity.tolist() for each in compared.values()]
    for row, *similarities in zip(pairs.rows, *by_encoder, strict=True):
        table.writerow([row.name, row.window, *(f"{similarity:.6f}" for similarity in similarities)])
    return text.getvalue().encode("utf-8")


def measurements_table(measured: Sequence[EncoderScores], metric: str, columns: Sequence[str]) -> bytes | None:
    """Return what a metric measured in every image, as CSV; None where it was not scored."""
    part = find_scores(measured, metric)
    if part is None:
        return None
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["set", "name", "window", *columns])
    for kind, features in part.features.items():
        values = iter(row.tolist() for rows in features for row in rows)
        for row, numbers in zip(features.rows, values, strict=True):
            table.writerow([kind, row.name, row.window, *(f"{number:.6g}" for number in numbers)])
    return text.getvalue().encode("utf-8")


def find_scores(measured: Sequence[EncoderScores], name: str) -> EncoderScores | None:
    """Return the scores by one encoder, or of a metric that needs none; None where there are none."""
    return next((part for part in measured if part.scores.encoder == name), None)


def encoder_parts(measured: Sequence[EncoderScores]) -> list[EncoderScores]:
    """Return the scores by encoders, without those of metrics that need none."""
    return [part for part in measured if part.scores.encoder not in MEASURED_METRICS]


def page_fields(
    measured: Sequence[EncoderScores], sources: Mapping[str, Source], about: ReportInfo, notes: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of the template."""
    first, images, encoded = measured[0], image_sets(sources), encoder_parts(measured)
    others = [part for part in measured if part.scores.encoder in MEASURED_METRICS]
    fields: dict[str, Any] = {
        "note": about.note,
        "notes": notes,
        "sets": [{"kind": kind, **_set_fields(kind, first)} for kind in first.features],
        "encoders": [_encoder_fields(part) for part in encoded],
        "cards": [
            _card(name, part) for part in (*encoded[:1], *others) for name in SHOWN if name in part.scores.values
        ],
        "score_tables": [
            {
                "columns": [title for part in parts for title in _column_titles(part)],
                "rows": [
                    {**QUANTITIES[name]._asdict(), "cells": _cells(name, parts)}
                    for name in QUANTITIES
                    if any(name in part.scores.values for part in parts)
                ],
            }
            for parts in (encoded, *([part] for part in others))
            if parts
        ],
        "loss": None if about.losses is None else _loss_fields(about.losses, plot=True),
        "pairs": [],
        "pair_count": 0 if first.scores.pairs is None else len(first.scores.pairs.rows),
        "neighbours": [],
        "sheets": [],
        "tables": [("Sampling", about.settings)] if about.settings else [],
    }
    weights = {f"weights of {part.scores.encoder}": part.weights for part in measured if part.weights}
    fields["tables"].append(("Scoring", {**about.measured, **weights, "made": date.today().isoformat()}))
    fields["tables"] += [("Time", _timing_fields(about.timing))] if about.timing.images else []
    fields["tables"].append(("Versions", package_versions()))
    if images and first.scores.pairs is not None:
        fields["pairs"] = page.build_ranked_pairs(first.scores.pairs, images[REAL], images[SYNTHETIC])
    if images and first.scores.neighbours is not None:
        rows, training = first.features[SYNTHETIC].rows, first.features[TRAINING].rows
        fields["neighbours"] = page.build_nearest_pairs(
            first.scores.neighbours, rows, images[SYNTHETIC], training, images[TRAINING]
        )
    if images:
        fields["sheets"] = [
            {
                "title": f"{kind.capitalize()} images",
                "src": page.contact_sheet_uri(images[kind], part.rows, about.seed),
            }
            for kind, part in first.features.items()
            if kind != TRAINING
        ]
    return fields


def _window(images: ImageSet, row: Row) -> Image.Image:
    return load_window(images.files[row.name], images.fit, row.window)


def _set_fields(kind: str, first: EncoderScores) -> dict[str, Any]:
    features = first.features[kind]
    return {"count": len(features), "formats": features.formats, "left_out": features.bad}


def _encoder_fields(part: EncoderScores) -> dict[str, Any]:
    scores, plots = part.scores, []
    if scores.pairs is not None:
        title = f"Similarity of pairs, in features of {scores.encoder}"
        plots.append({"title": title, "src": page.png_uri(charts.plot_similarity(scores.pairs))})
    if scores.extrapolation is not None:
        plot = charts.plot_extrapolation(scores.extrapolation, min(scores.counts.values()))
        title = f"Fréchet distance by the number of images, in features of {scores.encoder}"
        plots.append({"title": title, "src": page.png_uri(plot)})
    return {"name": scores.encoder, "width": scores.width, "compared": part.untrained is not None, "plots": plots}


def _card(name: str, part: EncoderScores) -> dict[str, Any]:
    compared = part.untrained.values.get(name) if part.untrained is not None else None
    fields = {**QUANTITIES[name]._asdict(), **part.scores.values[name]._asdict()}
    return {**fields, "compared": None if compared is None else compared.value}


def _column_titles(part: EncoderScores) -> list[str]:
    """Return the titles of an encoder's columns."""
    name = part.scores.encoder
    return [name] if part.untrained is None else [name, f"{name}, untrained"]


def _cells(name: str, measured: Sequence[EncoderScores]) -> list[Value | None]:
    cells = []
    for part in measured:
        cells.append(part.scores.values.get(name))
        if part.untrained is not None:
            cells.append(part.untrained.values.get(name))
    return cells


def _loss_fields(losses: Losses, plot: bool = False) -> dict[str, Any]:
    smooth, held_out = losses.training.smoothed(), losses.validation
    fields: dict[str, Any] = {
        "points": len(losses.training.steps),
        "steps": losses.training.steps[-1],
        "first": smooth[0],
        "last": smooth[-1],
        "validation": None if held_out is None else [held_out.values[0], held_out.values[-1]],
    }
    if plot:
        fields["src"] = page.png_uri(charts.plot_losses(losses.training, held_out))
    return fields


def _timing_fields(timing: Timing) -> dict[str, str]:
    return {
        "images embedded": str(timing.images),
        "seconds": f"{timing.seconds:.1f}",
        "of these in the encoder": f"{100 * timing.encoder_share:.0f} %",
    }
