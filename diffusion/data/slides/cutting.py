"""One slide into patches: which squares of its grid are worth keeping, and the record of what became of each.

A slide's folder appears whole, by one rename, when its last patch is written; beside all folders of a cohort lie
`slides_<size>/<slide>.json`, the record, and `<slide>.png`, the picture of what was taken.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from diffusion.data.slides.overview import draw_overview
from diffusion.data.slides.patches import patch_file, save_patch
from diffusion.data.slides.reader import Slide, open_slide
from diffusion.data.slides.tissue import MASK_SIDE, SlideMap, blur
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write
from diffusion.utils.locks import file_lock
from diffusion.utils.text import read_json

WHOLE_SLIDE = (0.0, 0.0, 1.0, 1.0)
# Why a square is no patch, in the order in which it is asked.
BLANK, LITTLE_TISSUE, PEN, BLACK, OUT_OF_FOCUS = REASONS = ("blank", "little tissue", "pen", "black", "out of focus")
BLANK_TISSUE = 0.01  # a square with less tissue than this is glass
BLANK_SPREAD = (
    2.0  # standard deviation of grey, of 255, below which the pixels show nothing: a tile that failed to scan
)
INK_LIMIT = 0.1  # part of a patch that ink may cover
BLACK_LIMIT = 0.1


class Cell(NamedTuple):
    """One square of the grid: its column and row, and its top-left pixel."""

    column: int
    row: int
    x: int
    y: int


@dataclass(frozen=True)
class Grid:
    """Where patches lie: squares of `size`, `step` apart, wholly inside `area` (left, top, right, bottom; fractions)."""

    size: int
    step: int
    area: tuple[float, float, float, float] = WHOLE_SLIDE

    def __post_init__(self) -> None:
        left, top, right, bottom = self.area
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise InputError(
                f"got the area {self.area}, expected fractions X0 Y0 X1 Y1 with 0 <= X0 < X1 <= 1 and 0 <= Y0 < Y1 <= 1"
            )

    def cells(self, width: int, height: int) -> list[Cell]:
        """List the squares of a slide of `width` x `height` pixels, row by row."""
        left, top, right, bottom = self.area
        columns = list(enumerate(self._starts(left * width, right * width)))
        rows = enumerate(self._starts(top * height, bottom * height))
        return [Cell(column, row, x, y) for row, y in rows for column, x in columns]

    def _starts(self, low: float, high: float) -> range:
        tiny = 1e-6  # of a pixel: 0.29 * 100 is 28.999999999999996
        return range(math.ceil(low - tiny), math.floor(high + tiny) - self.size + 1, self.step)


@dataclass(frozen=True)
class CutSettings:
    """How slides are cut; a slide that was cut otherwise before is refused."""

    grid: Grid
    mpp: float = 0.5  # microns per pixel of the patches
    image_mpp: float | None = None  # of the files, whatever they say themselves; None: what they say
    tissue_threshold: float = 0.5
    max_blur: float = 0.68
    quality: int = 95  # of the JPEG


@dataclass(frozen=True)
class SlideRecord:
    """What became of one slide."""

    slide: str
    bytes: int  # of its file
    settings: dict
    told: bool  # whether image_mpp counts: for plain images, and for slides where it was given
    note: str  # which pixels were read, in words
    patches: int
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    seconds: float = 0.0
    before: bool = False  # made by a run before this one


def cut_slide(path: Path, cohort: Path, settings: CutSettings, show: Callable[[Iterable], Iterable]) -> SlideRecord:
    """Write the patches of one slide, its picture and its record into a cohort's folder; one that has them is left alone.

    show: wraps the squares to be read, for a progress bar.
    Raises InputError for a slide that cannot be read, was cut with other settings, or is being cut by another process;
    nothing of it is left then.
    """
    folder, about = folders(path, cohort, settings)
    with file_lock(about / f".{path.stem}.lock"):
        return finished_record(path, cohort, settings) or _cut_slide(path, folder, about, settings, show)


def folders(path: Path, cohort: Path, settings: CutSettings) -> tuple[Path, Path]:
    """Return where the patches of a slide go, and where its picture and record do."""
    size = settings.grid.size
    return cohort / f"single_{size}" / path.stem, cohort / f"slides_{size}"


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
            _plain(settings),
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


def finished_record(path: Path, cohort: Path, settings: CutSettings) -> SlideRecord | None:
    """Return the record of a slide that is cut already, else None. Raises InputError when it was cut otherwise."""
    folder, about = folders(path, cohort, settings)
    file = about / f"{path.stem}.json"
    if not file.is_file():
        if folder.is_dir():
            raise InputError(f"{folder} has patches, but no record of how they were cut; take another --cohort")
        return None
    try:
        record = SlideRecord(**read_json(file, "record of a slide", f"delete it and {folder}"))
        had = {**record.settings, "bytes": record.bytes}
    except TypeError as error:
        raise InputError(f"{file} is no record of a slide ({error}); delete it and {folder}") from error
    if record.patches and not folder.is_dir():  # killed between the two
        return None
    asked = {**_plain(settings), "bytes": path.stat().st_size if path.is_file() else record.bytes}
    if not record.told:  # it was cut by what the file says
        had["image_mpp"] = None
    for name in asked:
        if asked[name] != had.get(name):
            raise InputError(
                f"{path.name} was cut with {name} {had.get(name)} before, and now {asked[name]} is asked for; "
                f"take another --cohort, or delete {folder}, {file}, and what was extracted or packed from them"
            )
    return dataclasses.replace(record, before=True)


def places_apart(patches: Path, name: str, size: int) -> int | None:
    """Return how many places of its slide's grid lie from one patch to the next that does not overlap it.

    One, but where the slide's record tells of a step of another length; None where no patch begins at the end of another.
    Raises InputError for a damaged record.
    """
    folder = (patches / name).parent
    record = folder.parent.with_name(f"slides_{size}") / f"{folder.name}.json"
    if not record.is_file():
        return 1
    try:
        step = int(read_json(record, "record of a slide", "cut the slide again")["settings"]["step"])
        return size // step if size % step == 0 else None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{record} is no record of a slide ({error!r}); cut the slide again") from None


def _plain(settings: CutSettings) -> dict:
    """The settings as JSON gives them back, one level deep."""
    values = asdict(settings)
    return json.loads(json.dumps({**values.pop("grid"), **values}))


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
