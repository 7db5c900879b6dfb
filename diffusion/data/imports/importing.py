"""Embeddings of other programs into a cohort of patches: feature files, records, names for the index, and pixels.

As after cutting, a slide's patches lie in `single_<size>/<slide>/` of the cohort, and `slides_<size>/<slide>.json` is its
record: it is there before the first file, and says at the end what is done, so that a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion.data.features.loose import made_by_path, read_made_by
from diffusion.data.features.npy import write_checked
from diffusion.data.imports.layout import PatchLayout, lay_out
from diffusion.data.imports.sources import (
    FoundFiles,
    SlideWindows,
    check_windows,
    iterate_embeddings,
    read_windows,
)
from diffusion.data.index.patch_index import iterate_names, open_index
from diffusion.data.slides.patches import patch_path, save_patch
from diffusion.data.slides.reader import Slide, open_slide
from diffusion.data.slides.records import SlideRecord
from diffusion.formats import PATCHES_DIR, WINDOW
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write, remove_temporary_files
from diffusion.utils.locks import file_lock
from diffusion.utils.text import read_json

EMBEDDINGS, IMAGES = "embeddings", "images"  # what may be done of a slide
ENDS = 2  # pixels that sizes of one slide may differ by: programs round them differently


@dataclass(frozen=True)
class ImportSettings:
    """What is imported, and where to.

    cohort: its folder below ROOT/patches, `<dataset>/<cohort>`. suffix: the ending of the embedding files. mpp: microns per
    pixel of windows of which no file says it. patch_files: of CLAM. quality: of the JPEG.
    """

    tool: str
    root: Path
    cohort: str
    size: int
    suffix: str
    mpp: float | None = None
    patch_files: Path | None = None
    quality: int = 95
    workers: int = 1

    @property
    def key(self) -> str:
        """Return the key of the patches in the index."""
        return f"{self.cohort.partition('/')[0]}_{self.size}"

    @property
    def slides_place(self) -> str:
        """Return the folder of the slides' folders, below ROOT/patches."""
        return f"{self.cohort}/single_{self.size}"

    def folders(self, slide: str) -> tuple[Path, Path]:
        """Return where the patches of a slide go, and its record."""
        patches = self.root / PATCHES_DIR
        return patches / self.slides_place / slide, patches / self.cohort / f"slides_{self.size}" / f"{slide}.json"


class Imported(NamedTuple):
    """A slide that was imported, now or before: its record, and the places of its patches, int32 (P, 2)."""

    record: SlideRecord
    places: np.ndarray


def import_files(
    found: FoundFiles, settings: ImportSettings, slides: Mapping[str, Path] | None = None
) -> Generator[tuple[Path, Imported | InputError]]:
    """Import every file; yield each with what came of it, or why nothing did. slides: by name, to cut the pixels from."""
    yield from ((path, InputError(reason)) for path, reason in found.refused.items())
    width: int | None = imported_embedding_width(settings)
    for slide, path in found.paths.items():
        try:
            image = None if slides is None else _find_slide(slide, path, slides)
            windows = read_windows(settings.tool, path, settings.patch_files)
            check_windows(windows, _stated_mpp(windows, image, settings), settings.suffix)
            if len(windows.coords) and width is not None and windows.width != width:
                raise InputError(
                    f"{path} has embeddings of width {windows.width}, and others *_{settings.suffix}.npy of {settings.key} have "
                    f"{width}; import them with another --embedding-suffix"
                )
            done = _import_slide(slide, windows, settings, image)
            if width is None and len(done.places):
                width = windows.width
                _note_import(settings, width)
            yield path, done
        except InputError as error:
            yield path, error


def imported_embedding_width(settings: ImportSettings) -> int | None:
    """Return the width of what was imported before; None for nothing. Raises InputError where they were extracted here."""
    folder = settings.root / PATCHES_DIR
    made = read_made_by(folder, settings.key).get(settings.suffix)
    if made is None:
        return None
    if not made.get("imported"):
        raise InputError(
            f"*_{settings.suffix}.npy of {settings.key} were extracted here, as {made_by_path(folder, settings.key)} says, and "
            "imported ones must not be mixed with them; take another --dataset or --embedding-suffix"
        )
    return int(made["width"])


def _note_import(settings: ImportSettings, width: int) -> None:
    """Record that the embeddings were imported: extraction leaves them alone then."""
    folder = settings.root / PATCHES_DIR
    noted = {**read_made_by(folder, settings.key), settings.suffix: {"imported": True, "width": width}}
    with atomic_write(made_by_path(folder, settings.key)) as temporary:
        temporary.write_text(json.dumps(noted, indent=1))


def _find_slide(slide: str, path: Path, slides: Mapping[str, Path]) -> Path:
    if slide not in slides:
        raise InputError(
            f"{path}: no slide called {slide} among those of --slides; name its folder, or leave --slides out"
        )
    return slides[slide]


def _stated_mpp(windows: SlideWindows, image: Path | None, settings: ImportSettings) -> float | None:
    """Return microns per pixel of windows whose file does not say it: by their slide, else as the user says."""
    if windows.mpp is not None or image is None:
        return settings.mpp
    import openslide

    from diffusion.data.slides.resolution import stated_mpp

    try:
        with openslide.open_slide(image) as slide:
            stated = stated_mpp(slide.properties)
    except (openslide.OpenSlideError, OSError) as error:
        raise InputError(f"{image} cannot be opened ({error})") from None
    return settings.mpp if stated is None else stated[0] * windows.side / windows.pixels


def _import_slide(slide: str, windows: SlideWindows, settings: ImportSettings, image: Path | None) -> Imported:
    folder, file = settings.folders(slide)
    began, layout = time.perf_counter(), lay_out(windows, settings.size)
    places = layout.places.astype(np.int32)
    with file_lock(file.with_name(f".{slide}.lock")):
        record = SlideRecord(
            slide=windows.path.name,
            bytes=windows.path.stat().st_size,
            settings={
                "size": settings.size, "step": layout.step, "embeddings": settings.suffix, "windows": windows.side, "done": []
            },
            mpp_given=windows.mpp is None,
            note=f"imported from {settings.tool}, {len(windows.coords)} windows of {windows.side} pixels of the finest level",
            patches=len(layout),
            dropped=layout.dropped,
        )  # fmt: skip
        done = _find_done(file, folder, record)
        wanted = [EMBEDDINGS, *([] if image is None else [IMAGES])]
        if not set(wanted) - set(done):
            return Imported(dataclasses.replace(record, is_earlier=True), places)
        _write_record(file, record, done)
        if len(layout):
            folder.mkdir(parents=True, exist_ok=True)
            remove_temporary_files(folder)
        if EMBEDDINGS not in done:
            _write_embeddings(windows, layout, folder, settings)
            done = [*done, EMBEDDINGS]
        if image is not None and IMAGES not in done:
            _cut_images(image, windows, layout, folder, settings)
            done = [*done, IMAGES]
        record = dataclasses.replace(record, seconds=round(time.perf_counter() - began, 2))
        _write_record(file, record, done)
    return Imported(record, places)


def _find_done(file: Path, folder: Path, record: SlideRecord) -> list[str]:
    """Return what earlier runs have done of a slide. Raises InputError where its folder holds other patches."""
    remedy = f"take another --cohort, or delete {folder} and {file}"
    if not file.is_file():
        if folder.is_dir():
            raise InputError(f"{folder} has patches that were not imported; {remedy}")
        return []
    try:
        before = SlideRecord.from_json(read_json(file, "record of a slide", remedy))
    except TypeError as error:
        raise InputError(f"{file} is no record of a slide ({error}); {remedy}") from None
    had, asked = dict(before.settings), dict(record.settings)
    done, _ = had.pop("done", None), asked.pop("done")
    if done is None:
        raise InputError(f"{folder} has patches that were cut, not imported; {remedy}")
    had, asked = {**had, "bytes": before.bytes}, {**asked, "bytes": record.bytes}
    for name, value in asked.items():
        if had.get(name) != value:
            raise InputError(
                f"{record.slide} was imported with {name} {had.get(name)} before, and now it is {value}; {remedy}"
            )
    return list(done) if folder.is_dir() or not before.patches else []


def _write_record(file: Path, record: SlideRecord, done: list[str]) -> None:
    """Write the record of a slide of which so much is done."""
    with atomic_write(file) as temporary:
        content = dataclasses.replace(record, settings={**record.settings, "done": done}).to_json()
        temporary.write_text(json.dumps(content, indent=1))


def _write_embeddings(windows: SlideWindows, layout: PatchLayout, folder: Path, settings: ImportSettings) -> None:
    """Write a file for each patch as soon as its last window was read: of 1024 pixels, few are in memory at a time."""
    per_patch = (settings.size // WINDOW) ** 2
    names = [f"{column}_{row}_{settings.suffix}.npy" for column, row in layout.places.tolist()]
    waiting: dict[int, tuple[np.ndarray, int]] = {}  # tokens, and how many of them are there
    for start, part in iterate_embeddings(windows.path):
        rows = slice(start, start + len(part))
        for patch, token, embedding in zip(layout.patch[rows].tolist(), layout.token[rows].tolist(), part, strict=True):
            if patch < 0:
                continue
            if per_patch == 1:
                write_checked(folder, names[patch], embedding[None])
                continue
            tokens, count = waiting.pop(patch, (None, 0))
            if tokens is None:
                tokens = np.empty((per_patch, part.shape[1]), np.float16)
            tokens[token] = embedding
            if count + 1 == per_patch:
                write_checked(folder, names[patch], tokens)
            else:
                waiting[patch] = (tokens, count + 1)


def _cut_images(
    image: Path, windows: SlideWindows, layout: PatchLayout, folder: Path, settings: ImportSettings
) -> None:
    """Cut the pixels of every patch from its slide, at the corner that the file says and at its scale."""
    with closing(open_slide(image, layout.side / WINDOW, 1.0)) as slide, ThreadPoolExecutor(settings.workers) as pool:
        _check_size(slide, image, windows)

        def cut(patch: int) -> None:
            path = patch_path(folder, *layout.places[patch].tolist())
            if not path.is_file():  # patches are whole once they are there
                x, y = (layout.corners[patch] / slide.factor).tolist()
                save_patch(slide.read(x, y, settings.size), path, settings.quality)

        for _ in pool.map(cut, range(len(layout))):
            pass


def _check_size(slide: Slide, image: Path, windows: SlideWindows) -> None:
    """Check that a slide is as large as the one that the file says its windows are of. Raises InputError."""
    found = (slide.width * slide.factor, slide.height * slide.factor)
    wanted = windows.slide_size
    if wanted is not None and any(abs(a - b) > ENDS * slide.factor for a, b in zip(found, wanted, strict=True)):
        raise InputError(
            f"{image} has {found[0]:.0f} x {found[1]:.0f} pixels, and {windows.path} is of a slide of {wanted[0]} x {wanted[1]}: another "
            "slide of the same name; name the folder of the right one with --slides"
        )
    if len(windows.coords) and any(windows.coords.max(axis=0) >= np.array(found)):
        raise InputError(
            f"{image} ends before windows of {windows.path} begin: it is another slide; name the right one"
        )


def merged_names(index: Path, settings: ImportSettings, imported: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield the names under the key of the index but for those of the slides imported, then theirs, by slide."""
    place = f"{settings.slides_place}/"
    if index.is_file():
        with open_index(index) as file:
            listed = settings.key in file
        for name in iterate_names(index, settings.key) if listed else ():
            if not (name.startswith(place) and name[len(place) :].partition("/")[0] in imported):
                yield name
    for slide, places in imported.items():
        yield from (f"{place}{slide}/{column}_{row}.jpeg" for column, row in places.tolist())
