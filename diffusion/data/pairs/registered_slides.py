"""Two registered slides into pairs of patches: those of the source as they are cut alone, those of the target through the map.

The record and the picture of a slide are those of slides that are cut alone; its settings have the target and the map beside.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffusion.data.pairs.layout import PairLayout
from diffusion.data.pairs.registration import apply_map, check_inside, map_scale
from diffusion.data.slides.cutting import (
    BLANK_SPREAD,
    REASONS,
    judge_pixels,
    judge_thumbnail,
    render_outcomes,
)
from diffusion.data.slides.grid import Cell
from diffusion.data.slides.patches import patch_path, save_patch
from diffusion.data.slides.reader import Slide, open_slide
from diffusion.data.slides.records import CutSettings, SlideRecord, find_record, settings_json, slide_folders
from diffusion.data.slides.tissue import THUMBNAIL_SIDE, SlideMap, glass_mask
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write
from diffusion.utils.folders import natural_key
from diffusion.utils.locks import file_lock

# why a patch of the source has no partner
OUTSIDE, GLASS = UNMATCHED = ("outside target", "target glass")
MARGIN = 3  # pixels around what a patch needs of the target, of which bicubic interpolation reads two
LARGEST_STRETCH = (
    1.25  # of the target to the source: neighbouring sections are stretched by some per cent when they are mounted
)
MOST_GLASS = (
    0.9  # of a patch of the target; what is pale, as stroma is in immunohistochemistry, counts as glass in part
)
SAMPLES = 64  # points a side at which a patch of the target is judged


class RegisteredSlide:
    """A slide that is read in the frame of another, to which it is registered.

    matrix: from pixels of the source's finest level to pixels of this one's; factor: pixels of that finest level to one of a patch.
    """

    def __init__(self, path: Path, matrix: np.ndarray, factor: float):
        """Open the slide at the resolution of the patches. Raises MissingError, InputError as open_slide does, or for a coarser one."""
        own = factor * map_scale(matrix)  # pixels of this slide's finest level to one of a patch
        if own * LARGEST_STRETCH < 1:
            raise InputError(
                f"{path}: one pixel of the patches is {own:.3g} pixels of it by the registration, and enlarging would invent detail; make "
                "coarser patches with --mpp, or check that the registration maps source pixels to target pixels of the finest levels"
            )
        self._slide = slide = open_slide(path, max(own, 1.0), 1.0)
        self.matrix = np.diag([1 / slide.factor, 1 / slide.factor, 1]) @ matrix @ np.diag([factor, factor, 1])
        self._glass = glass_mask(slide.thumbnail(THUMBNAIL_SIDE))

    def covers(self, x: float, y: float, size: int) -> bool:
        """Tell whether the square with top-left pixel x, y in the source lies in this slide, give or take a pixel."""
        corners = apply_map(self.matrix, _grid_points(x, y, size, 2))
        return bool((corners >= -1).all() and (corners <= (self._slide.width + 1, self._slide.height + 1)).all())

    def glass_share(self, x: float, y: float, size: int) -> float:
        """Return which part of such a square is glass here, 0 to 1."""
        height, width = self._glass.shape
        points = apply_map(self.matrix, _grid_points(x, y, size, SAMPLES, inset=0.5))
        columns = (points[:, 0] * width / self._slide.width).astype(int).clip(0, width - 1)
        rows = (points[:, 1] * height / self._slide.height).astype(int).clip(0, height - 1)
        return float(self._glass[rows, columns].mean())

    def read(self, x: float, y: float, size: int) -> Image.Image:
        """Read such a square, RGB of `size` pixels, bicubic; beyond the slide it is white."""
        corners = apply_map(self.matrix, _grid_points(x, y, size, 2))
        left, top = (math.floor(low) - MARGIN for low in corners.min(axis=0))
        side = math.ceil((corners.max(axis=0) - (left, top)).max()) + MARGIN
        window = self._slide.read(left, top, side)
        rows = self.matrix[:2].copy()
        rows[:, 2] += rows[:, :2] @ (x, y) - (left, top)
        return window.transform(
            (size, size),
            Image.Transform.AFFINE,
            tuple(rows.ravel()),
            Image.Resampling.BICUBIC,
            fillcolor="white",
        )

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


def _grid_points(x: float, y: float, size: int, count: int, inset: float = 0.0) -> np.ndarray:
    """Return points (count * count, 2), evenly spread over a square up to its edges, or `inset` steps within them."""
    steps = (np.arange(count) + inset) / (count - 1 + 2 * inset) * size
    across, down = np.meshgrid(x + steps, y + steps)
    return np.column_stack([across.ravel(), down.ravel()])


def cut_slide_pair(
    source: Path,
    target: Path,
    matrix: np.ndarray,
    cohort: str,
    layout: PairLayout,
    settings: CutSettings,
    show: Callable[[Iterable], Iterable],
) -> SlideRecord:
    """Write the pairs of patches of two slides, the picture and the record of the source; those that are there are left alone.

    matrix: float64 (3, 3), from pixels of the source's finest level to the target's. show: wraps the squares to be read, for a progress
    bar. Raises InputError for slides that cannot be read, or were paired otherwise before; nothing of them is left then.
    """
    cohorts = layout.cohorts(cohort)
    folder, records = slide_folders(source, cohorts[0], settings)
    pairing = {
        "stain": layout.stain,
        "target": target.name,
        "target_bytes": target.stat().st_size if target.is_file() else None,
        "matrix": matrix[:2].tolist(),
    }
    with file_lock(records / f".{source.stem}.lock"):
        before = find_record(source, cohorts[0], settings)
        if before is None:
            other = slide_folders(source, cohorts[1], settings)[0]
            return _cut(source, target, matrix, (folder, other), records, settings, pairing, show)
        for name, value in pairing.items():
            if before.settings.get(name) != value:
                had = before.settings.get(name, "nothing")
                raise InputError(
                    f"{source.name} was paired with {name} {had} before, and now {value} is asked for; take another --cohort, or delete "
                    f"{folder}, that of the other stain, {records / f'{source.stem}.json'}, and what was extracted from them"
                )
        return before


def _cut(
    source: Path,
    target: Path,
    matrix: np.ndarray,
    folders: tuple[Path, Path],
    records: Path,
    settings: CutSettings,
    pairing: dict[str, Any],
    show: Callable[[Iterable], Iterable],
) -> SlideRecord:
    began = time.perf_counter()
    unfinished = [folder.with_name(f".{folder.name}.tmp") for folder in folders]
    for place in unfinished:
        shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    try:
        with (
            closing(open_slide(source, settings.mpp, settings.image_mpp)) as slide,
            closing(RegisteredSlide(target, matrix, slide.factor)) as partner,
        ):
            thumbnail = slide.thumbnail(THUMBNAIL_SIDE)
            slide_map = SlideMap.from_thumbnail(thumbnail, slide.width, slide.height)
            outcomes: dict[Cell, str | None] = {}
            for cell in show(settings.grid.cells(slide.width, slide.height)):
                outcomes[cell] = _write_pair(slide, slide_map, partner, cell, unfinished, settings)
        records.mkdir(parents=True, exist_ok=True)
        with atomic_write(records / f"{source.stem}.png") as temporary:
            picture = render_outcomes(thumbnail, slide.width, outcomes, settings.grid, (*REASONS, *UNMATCHED))
            picture.save(temporary, "PNG")
        dropped = Counter(outcome for outcome in outcomes.values() if outcome is not None)
        record = SlideRecord(
            slide=source.name,
            bytes=source.stat().st_size,
            settings={**settings_json(settings), **pairing},
            mpp_given=slide.mpp_given,
            note=f"{slide.width}x{slide.height}, {slide.note}",
            patches=len(outcomes) - dropped.total(),
            dropped=dict(dropped),
            seconds=round(time.perf_counter() - began, 2),
        )
        with atomic_write(records / f"{source.stem}.json") as temporary:
            temporary.write_text(json.dumps(record.to_json(), indent=1))
        if record.patches:
            shutil.rmtree(folders[1], ignore_errors=True)  # of a run that was killed between these two
            for place, folder in reversed(
                list(zip(unfinished, folders, strict=True))
            ):  # the source's last: it counts as done
                place.rename(folder)
    finally:
        for place in unfinished:
            shutil.rmtree(place, ignore_errors=True)
    return record


def _write_pair(
    slide: Slide,
    slide_map: SlideMap,
    partner: RegisteredSlide,
    cell: Cell,
    folders: list[Path],
    settings: CutSettings,
) -> str | None:
    """Write a patch and its partner; return why there is none, None for a pair."""
    size = settings.grid.size
    outcome = judge_thumbnail(slide_map, cell, size, settings.tissue_threshold)
    if outcome is not None:
        return outcome
    if not partner.covers(cell.x, cell.y, size):
        return OUTSIDE
    if partner.glass_share(cell.x, cell.y, size) > MOST_GLASS:
        return GLASS
    patch = slide.read(cell.x, cell.y, size)
    outcome = judge_pixels(patch, settings.max_blur)
    if outcome is not None:
        return outcome
    other = partner.read(cell.x, cell.y, size)
    if np.asarray(other.convert("L")).std() < BLANK_SPREAD:
        return GLASS
    for image, folder in zip((patch, other), folders, strict=True):
        save_patch(image, patch_path(folder, cell.column, cell.row), settings.quality)
    return None


def list_pairs(source: Path, cohort: str, layout: PairLayout, settings: CutSettings) -> list[str]:
    """Return the names of the H&E patches of a slide that was paired, in natural order."""
    folder, _ = slide_folders(source, layout.cohorts(cohort)[0], settings)
    files = [path.name for path in folder.iterdir() if path.suffix == ".jpeg"] if folder.is_dir() else []
    return [layout.name(cohort, source.stem, file) for file in sorted(files, key=natural_key)]


def check_landmarks(points: np.ndarray, file: Path, slide: Path) -> None:
    """Check that landmarks lie in their slide, in pixels of its finest level. Raises MissingError, InputError."""
    with closing(open_slide(slide, 1.0, 1.0)) as finest:
        check_inside(points, file, finest.width, finest.height, slide)


def target_mpp(source: Path, matrix: np.ndarray, settings: CutSettings) -> float:
    """Return the microns per pixel of the target's finest level, by the source's and the map. Raises InputError."""
    with closing(open_slide(source, settings.mpp, settings.image_mpp)) as slide:
        return settings.mpp / slide.factor / map_scale(matrix)
