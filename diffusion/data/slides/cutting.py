"""One slide into patches: which squares of its grid are worth keeping.

A slide's folder appears whole, by one rename, when its last patch is written; beside all folders of a cohort lie
`slides_<size>/<slide>.json`, the record, and `<slide>.png`, the picture of what was taken.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.slides.grid import Cell
from diffusion.data.slides.overview import draw_overview
from diffusion.data.slides.patches import patch_file, save_patch
from diffusion.data.slides.reader import Slide, open_slide
from diffusion.data.slides.records import CutSettings, SlideRecord, finished_record, folders, settings_json
from diffusion.data.slides.tissue import MASK_SIDE, SlideMap, blur
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
    folder, about = folders(path, cohort, settings)
    with file_lock(about / f".{path.stem}.lock"):
        return finished_record(path, cohort, settings) or _cut_slide(path, folder, about, settings, show)


def _cut_slide(
    path: Path, folder: Path, about: Path, settings: CutSettings, show: Callable[[Iterable], Iterable]
) -> SlideRecord:
    began, size = time.perf_counter(), settings.grid.size
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    try:
        with closing(open_slide(path, settings.mpp, settings.image_mpp)) as slide:
            thumbnail = slide.thumbnail(MASK_SIDE)
            fates = _cut(slide, SlideMap.of(thumbnail, slide.width, slide.height), aside, settings, show)
            width, height, note, told = slide.width, slide.height, slide.note, slide.told
        about.mkdir(parents=True, exist_ok=True)
        scale = thumbnail.width / width
        squares = [((cell.x * scale, cell.y * scale), fate) for cell, fate in fates.items()]
        with atomic_write(about / f"{path.stem}.png") as temporary:
            step = min(size, settings.grid.step)
            draw_overview(thumbnail, squares, size * scale, step * scale, REASONS).save(temporary, "PNG")
        dropped = Counter(fate for fate in fates.values() if fate is not None)
        fits = "" if fates else f"; no patch of {size} fits"
        record = SlideRecord(
            path.name,
            path.stat().st_size,
            settings_json(settings),
            told,
            f"{width}x{height}, {note}{fits}",
            len(fates) - dropped.total(),
            dict(dropped),
            round(time.perf_counter() - began, 2),
        )
        with atomic_write(about / f"{path.stem}.json") as temporary:
            temporary.write_text(json.dumps(asdict(record), indent=1))
        if aside.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return record


def _cut(
    slide: Slide, where: SlideMap, folder: Path, settings: CutSettings, show: Callable[[Iterable], Iterable]
) -> dict[Cell, str | None]:
    """Write the patches; the fate of every square: None for a patch, else the reason why it is none."""
    fates: dict[Cell, str | None] = {}
    size = settings.grid.size
    for cell in show(settings.grid.cells(slide.width, slide.height)):
        fate, patch = _fate_at_a_glance(where, cell, size, settings.tissue_threshold), None
        if fate is None:
            patch = slide.read(cell.x, cell.y, size)
            fate = _fate_of_pixels(patch, settings.max_blur)
        if fate is None:
            save_patch(patch, patch_file(folder, cell.column, cell.row), settings.quality)
        fates[cell] = fate
    return fates


def _fate_at_a_glance(where: SlideMap, cell: Cell, size: int, tissue_threshold: float) -> str | None:
    shares = where.shares(cell.x, cell.y, size)
    if shares.black > BLACK_LIMIT:
        return BLACK
    if shares.ink > INK_LIMIT:
        return PEN
    if shares.tissue >= tissue_threshold:
        return None
    return BLANK if shares.tissue < BLANK_TISSUE else LITTLE_TISSUE


def _fate_of_pixels(patch: Image.Image, max_blur: float) -> str | None:
    grey = np.asarray(patch.convert("L"))
    if grey.std() < BLANK_SPREAD:
        return BLACK if grey.mean() < 64 else BLANK
    return OUT_OF_FOCUS if blur(patch) > max_blur else None
