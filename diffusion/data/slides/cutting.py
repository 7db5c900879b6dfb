"""One slide into patches: which squares of its grid are worth keeping.

A slide's folder appears whole, by one rename, when its last patch is written; beside all folders of a cohort lie
`slides_<size>/<slide>.json`, the record, and `<slide>.png`, the picture of what was taken.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.slides.grid import Cell, Grid
from diffusion.data.slides.overview import render_overview
from diffusion.data.slides.patches import patch_path, save_patch
from diffusion.data.slides.reader import Slide, open_slide
from diffusion.data.slides.records import CutSettings, SlideRecord, find_record, settings_json, slide_folders
from diffusion.data.slides.tissue import THUMBNAIL_SIDE, SlideMap, blur_score
from diffusion.utils.files import atomic_write
from diffusion.utils.locks import file_lock

# Why a square is no patch, in the order in which it is asked.
BLANK, LITTLE_TISSUE, PEN, BLACK, OUT_OF_FOCUS = REASONS = ("blank", "little tissue", "pen", "black", "out of focus")
BLANK_TISSUE = 0.01  # a square with less tissue than this is glass
BLANK_SPREAD = (
    2.0  # standard deviation of grey, of 255, below which the pixels show nothing: a tile that failed to scan
)
INK_LIMIT = 0.1  # part of a patch that ink may cover
BLACK_LIMIT = 0.1


def cut_slide(path: Path, cohort: Path, settings: CutSettings, show: Callable[[Iterable], Iterable]) -> SlideRecord:
    """Write the patches of one slide, its picture and its record into a cohort's folder; one that has them is left alone.

    show: wraps the squares to be read, for a progress bar.
    Raises InputError for a slide that cannot be read, was cut with other settings, or is being cut by another process;
    nothing of it is left then.
    """
    folder, records = slide_folders(path, cohort, settings)
    with file_lock(records / f".{path.stem}.lock"):
        return find_record(path, cohort, settings) or _cut_slide(path, folder, records, settings, show)


def _cut_slide(
    path: Path, folder: Path, records: Path, settings: CutSettings, show: Callable[[Iterable], Iterable]
) -> SlideRecord:
    began = time.perf_counter()
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    try:
        with closing(open_slide(path, settings.mpp, settings.image_mpp)) as slide:
            thumbnail = slide.thumbnail(THUMBNAIL_SIDE)
            slide_map = SlideMap.from_thumbnail(thumbnail, slide.width, slide.height)
            outcomes = _write_patches(slide, slide_map, unfinished, settings, show)
        records.mkdir(parents=True, exist_ok=True)
        with atomic_write(records / f"{path.stem}.png") as temporary:
            render_outcomes(thumbnail, slide.width, outcomes, settings.grid).save(temporary, "PNG")
        dropped = Counter(outcome for outcome in outcomes.values() if outcome is not None)
        fits = "" if outcomes else f"; no patch of {settings.grid.size} fits"
        record = SlideRecord(
            slide=path.name,
            bytes=path.stat().st_size,
            settings=settings_json(settings),
            mpp_given=slide.mpp_given,
            note=f"{slide.width}x{slide.height}, {slide.note}{fits}",
            patches=len(outcomes) - dropped.total(),
            dropped=dict(dropped),
            seconds=round(time.perf_counter() - began, 2),
        )
        with atomic_write(records / f"{path.stem}.json") as temporary:
            temporary.write_text(json.dumps(record.to_json(), indent=1))
        if unfinished.exists():
            unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return record


def render_outcomes(
    thumbnail: Image.Image,
    slide_width: int,
    outcomes: Mapping[Cell, str | None],
    grid: Grid,
    reasons: Sequence[str] = REASONS,
) -> Image.Image:
    """Return the picture of a slide with the squares that were kept and dropped. reasons: that there may be."""
    scale = thumbnail.width / slide_width
    squares = [((cell.x * scale, cell.y * scale), outcome) for cell, outcome in outcomes.items()]
    return render_overview(thumbnail, squares, grid.size * scale, min(grid.size, grid.step) * scale, reasons)


def _write_patches(
    slide: Slide, slide_map: SlideMap, folder: Path, settings: CutSettings, show: Callable[[Iterable], Iterable]
) -> dict[Cell, str | None]:
    """Write the patches; return the outcome of every square: None for a patch, else the reason why it is none."""
    outcomes: dict[Cell, str | None] = {}
    size = settings.grid.size
    for cell in show(settings.grid.cells(slide.width, slide.height)):
        outcome = judge_thumbnail(slide_map, cell, size, settings.tissue_threshold)
        if outcome is None:
            patch = slide.read(cell.x, cell.y, size)
            outcome = judge_pixels(patch, settings.max_blur)
            if outcome is None:
                if settings.orientation is not None:
                    patch = patch.transpose(Image.Transpose[settings.orientation.upper()])
                save_patch(patch, patch_path(folder, cell.column, cell.row), settings.quality)
        outcomes[cell] = outcome
    return outcomes


def judge_thumbnail(slide_map: SlideMap, cell: Cell, size: int, tissue_threshold: float) -> str | None:
    """Return why a square is no patch, by what the small picture of its slide shows; None where it does not say."""
    shares = slide_map.measure_square(cell.x, cell.y, size)
    if shares.black > BLACK_LIMIT:
        return BLACK
    if shares.ink > INK_LIMIT:
        return PEN
    if shares.tissue >= tissue_threshold:
        return None
    return BLANK if shares.tissue < BLANK_TISSUE else LITTLE_TISSUE


def judge_pixels(patch: Image.Image, max_blur: float) -> str | None:
    """Return why a square is no patch, by its own pixels; None for a patch."""
    grey = np.asarray(patch.convert("L"))
    if grey.std() < BLANK_SPREAD:
        return BLACK if grey.mean() < 64 else BLANK
    return OUT_OF_FOCUS if blur_score(patch) > max_blur else None
