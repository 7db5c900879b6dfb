"""Pairs of images into pairs of patches: copied where they are patches already, else resampled and cut, both the same way.

Beside `single_<size>/` of a cohort of the H&E data set lies `pairs_<size>.json`: how the pairs were made, and from files of how
many bytes.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from diffusion.data.images import open_image, read_header
from diffusion.data.pairs.layout import PairLayout
from diffusion.data.pairs.sources import TilePair
from diffusion.data.slides.grid import Grid
from diffusion.data.slides.patches import save_patch
from diffusion.data.slides.resolution import shrink_factor
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write, atomic_write_bytes
from diffusion.utils.locks import file_lock
from diffusion.utils.text import read_json

COPIED_FORMATS = ("JPEG", "PNG")  # of Pillow: what patches are
SUFFIXES = (".jpeg", ".png")
TINY = 1e-6  # of a pixel


@dataclass(frozen=True)
class TileSettings:
    """How pairs of images are made to patches; pairs that were made otherwise before are refused.

    mpp: microns per pixel of the patches; image_mpp: of the images, None: they are taken pixel for pixel, and smaller ones
    enlarged. quality: of the JPEG.
    """

    stain: str
    mpp: float = 0.5
    image_mpp: float | None = None
    quality: int = 95
    slide_pattern: str | None = None


class TileOutcome(NamedTuple):
    """What became of a pair: the names of its H&E patches, how many files were written now, and whether they were enlarged.

    error: why it has no patches.
    """

    names: tuple[str, ...] = ()
    written: int = 0
    enlarged: bool = False
    error: str | None = None


def record_path(layout: PairLayout, cohort: str) -> Path:
    """Return the record of the pairs of a cohort."""
    return layout.cohorts(cohort)[0] / f"pairs_{layout.size}.json"


def make_tile_pairs(
    pairs: Sequence[TilePair], cohort: str, layout: PairLayout, settings: TileSettings, workers: int
) -> Generator[tuple[TilePair, TileOutcome]]:
    """Make the patches of pairs that are not there yet, in a cohort; yield what became of each, in order.

    Raises InputError for pairs that were made with other settings, or from other files of the same names.
    """
    record = record_path(layout, cohort)
    with file_lock(record.with_name(f".{record.name}.lock")):
        _check_or_write_record(record, pairs, cohort, layout, settings)
        with ThreadPoolExecutor(workers) as pool:
            try:
                make = partial(make_tile_pair, cohort=cohort, layout=layout, settings=settings)
                yield from zip(pairs, pool.map(make, pairs), strict=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def make_tile_pair(pair: TilePair, cohort: str, layout: PairLayout, settings: TileSettings) -> TileOutcome:
    """Make the patches of one pair, but for those that are there; errors of its files are part of the outcome."""
    try:
        return _find_made(pair, cohort, layout, settings) or _make(pair, cohort, layout, settings)
    except InputError as error:
        return TileOutcome(error=str(error))


def _find_made(pair: TilePair, cohort: str, layout: PairLayout, settings: TileSettings) -> TileOutcome | None:
    """Return the outcome of a pair whose patches are all there, by the heads of its files, else None."""
    headers = [read_header(path) for path in (pair.source, pair.target)]
    sizes = [(header.width, header.height) for header in headers]
    if sizes[0] != sizes[1] or sizes[0][0] != sizes[0][1]:  # an EXIF orientation may swap the sides
        return None
    names = []
    for stem in _stems(pair, _final_size(pair.source, *sizes[0], layout.size, settings), layout.size):
        found = (layout.name(cohort, pair.slide, stem + suffix) for suffix in SUFFIXES)
        names.append(next((name for name in found if all(file.is_file() for file in layout.files(name))), None))
    whole = tuple(name for name in names if name is not None)
    return TileOutcome(whole, 0, _is_enlarged(sizes[0], layout.size, settings)) if len(whole) == len(names) else None


def _make(pair: TilePair, cohort: str, layout: PairLayout, settings: TileSettings) -> TileOutcome:
    paths = (pair.source, pair.target)
    images = [_open_rgb(path) for path in paths]
    (width, height), other = images[0].size, images[1].size
    if other != (width, height):
        raise InputError(
            f"{pair.source} has {width} x {height} pixels, and its partner {pair.target} {other[0]} x {other[1]}: expected the same"
        )
    square = (layout.size, layout.size)
    size = _final_size(pair.source, width, height, layout.size, settings)
    unchanged = [size == image.size == square and image.format in COPIED_FORMATS for image in images]
    is_png = any(same and image.format == "PNG" for same, image in zip(unchanged, images, strict=True))
    suffix = SUFFIXES[is_png]  # of both: a pair has one name
    copied = [same and (image.format == "PNG") == is_png for same, image in zip(unchanged, images, strict=True)]
    resampled = [_resample(image, size, settings) for image in images]
    cells = Grid(layout.size, layout.size).cells(*size)
    names, written = [], 0
    for cell, stem in zip(cells, _stems(pair, size, layout.size), strict=True):
        name = layout.name(cohort, pair.slide, stem + suffix)
        for path, image, same, file in zip(paths, resampled, copied, layout.files(name), strict=True):
            if file.is_file():
                continue
            patch = image.crop((cell.x, cell.y, cell.x + layout.size, cell.y + layout.size))
            _write(patch, path if same else None, file, settings.quality)
            written += 1
        names.append(name)
    return TileOutcome(tuple(names), written, _is_enlarged((width, height), layout.size, settings))


def _open_rgb(path: Path) -> Image.Image:
    image = open_image(path)
    if image.mode != "RGB":
        raise InputError(f"{path} is a {image.mode} image, expected RGB: convert it first")
    return image


def _final_size(path: Path, width: int, height: int, size: int, settings: TileSettings) -> tuple[int, int]:
    """Return the pixels of an image at the resolution of the patches. Raises InputError for one smaller than a patch."""
    if _is_enlarged((width, height), size, settings):
        return size, size
    factor = 1.0 if settings.image_mpp is None else shrink_factor(path, settings.image_mpp, settings.mpp)
    final = (int(width / factor + TINY), int(height / factor + TINY))
    if min(final) < size:
        scaled = f", {final[0]} x {final[1]} at {settings.mpp:g} um/px" if factor != 1 else ""
        advice = "a smaller --size" if settings.image_mpp is None else "a smaller --size, or leave --image-mpp out"
        raise InputError(
            f"{path} has {width} x {height} pixels{scaled}: expected at least {size} x {size}; take {advice}"
        )
    return final


def _is_enlarged(shape: tuple[int, int], size: int, settings: TileSettings) -> bool:
    """Tell whether an image becomes one patch by enlarging: a square of unknown resolution that is smaller than a patch."""
    return settings.image_mpp is None and shape[0] == shape[1] < size


def _resample(image: Image.Image, size: tuple[int, int], settings: TileSettings) -> Image.Image:
    """Return an image of that size, bicubic and without aliasing; what is less than a pixel at its right and lower edge is left out."""
    if image.size == size:
        return image
    box = None
    if settings.image_mpp is not None:
        factor = settings.mpp / settings.image_mpp
        box = (0, 0, min(size[0] * factor, image.width), min(size[1] * factor, image.height))
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def _stems(pair: TilePair, size: tuple[int, int], side: int) -> list[str]:
    """Return the names of the patches of a pair, without suffix: its own, or with column and row where several fit or a margin is left."""
    if size == (side, side):
        return [pair.stem]
    return [f"{pair.stem}_{cell.column}_{cell.row}" for cell in Grid(side, side).cells(*size)]


def _write(patch: Image.Image, unchanged: Path | None, file: Path, quality: int) -> None:
    """Write a patch. unchanged: the file whose bytes it has; None: it is encoded, without loss beside a PNG."""
    if unchanged is not None:
        atomic_write_bytes(file, unchanged.read_bytes())
    elif file.suffix == ".png":
        with atomic_write(file) as temporary:
            patch.save(temporary, format="PNG")
    else:
        save_patch(patch, file, quality)


def _check_or_write_record(
    record: Path, pairs: Sequence[TilePair], cohort: str, layout: PairLayout, settings: TileSettings
) -> None:
    """Compare settings and files with the record of earlier runs, and add the files to it. Raises InputError."""
    folders = [folder / f"single_{layout.size}" for folder in layout.cohorts(cohort)]
    remedy = f"take another --cohort, or delete {folders[0]}, {folders[1]}, {record}, and what was extracted from them"
    asked, content = asdict(settings), {}
    files: dict[str, list[int]] = {}
    if record.is_file():
        content = read_json(record, "record of pairs", remedy)
        had, files = _section(content, "settings", record, remedy), dict(_section(content, "bytes", record, remedy))
        for name, value in asked.items():
            if had.get(name) != value:
                raise InputError(
                    f"the pairs of {layout.keys[0]} in the cohort {cohort} were made with {name} {had.get(name)} before, and now {value} "
                    f"is asked for; {remedy}"
                )
    elif there := [folder for folder in folders if folder.is_dir()]:
        raise InputError(f"{there[0]} has patches, but no record of pairs; {remedy}")
    for pair in pairs:
        sizes = [pair.source.stat().st_size, pair.target.stat().st_size]
        before = files.setdefault(f"{pair.slide}/{pair.stem}", sizes)
        if before != sizes:
            raise InputError(
                f"the pair {pair.stem} was made from files of {' and '.join(map(str, before))} bytes before, and {pair.source} and its "
                f"partner have {' and '.join(map(str, sizes))}; {remedy}"
            )
    if content != {"settings": asked, "bytes": files}:
        with atomic_write(record) as temporary:
            temporary.write_text(json.dumps({"settings": asked, "bytes": files}, indent=1), encoding="utf-8")


def _section(content: dict[str, Any], name: str, record: Path, remedy: str) -> dict[str, Any]:
    section = content.get(name)
    if not isinstance(section, dict):
        raise InputError(f"{record} is no record of pairs: it has no {name}; {remedy}")
    return section
