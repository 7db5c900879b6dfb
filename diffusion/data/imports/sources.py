"""Files of embeddings that TRIDENT and CLAM write: an HDF5 file a slide, with `features` and `coords`.

Both have a row for each window of the slide: `features` (N, D), in some versions (1, N, D), and `coords` (N, 2), x and y of the
window's corner in pixels of the slide's finest level. TRIDENT says on `coords` how large a window is and at which magnification;
CLAM says its size in pixels of a level, in a file of the same name in another folder, and no magnification.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from diffusion.data.hdf5 import open_hdf5
from diffusion.data.slides.resolution import MPP_AT_1X, RESOLUTION_TOLERANCE
from diffusion.formats import SSL_PREFIX, WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.folders import SkippedEntries, natural_key, walk_folders
from diffusion.utils.text import is_utf8, printable_name

FOLDERS = {"trident": "features_uni_v2", "clam": "h5_files"}  # where each tool writes embeddings
ENCODER = "uni_v2"  # TRIDENT's name for UNI2-h
EMBEDDING_WIDTH = 1536  # of UNI2-h
MPP = 0.5  # microns per pixel of the windows that condition a network
WINDOW_MICRONS = WINDOW * MPP
ROWS_AT_ONCE = 1024


@dataclass
class FoundFiles:
    """The files of a folder, by slide; refused: those that cannot be taken beside the others, and why."""

    paths: dict[str, Path] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SlideWindows:
    """The windows of one slide that a file describes; `coords` int64 (N, 2).

    pixels: a side, as they were cut; side: the same in pixels of the slide's finest level. mpp: microns per pixel of the
    windows, None where the file does not say. slide_size: of the finest level, None where it is not said.
    """

    path: Path
    coords: np.ndarray
    pixels: int
    side: int
    mpp: float | None
    overlap: int
    encoder: str | None
    width: int
    slide_size: tuple[int, int] | None = None


def find_files(tool: str, folder: Path) -> FoundFiles:
    """Find the .h5 files in a folder; without any, in all folders below it that are called as the tool calls them.

    In natural order; of two files of one name the first is taken. Raises MissingError where there is none.
    """
    if not folder.is_dir():
        raise MissingError(f"no folder {folder}")
    wanted, others, skipped = FOLDERS[tool], [], SkippedEntries()
    found = FoundFiles()
    for place, names in walk_folders(folder, skipped):
        files = [place / name for name in names if name.lower().endswith(".h5")]
        if files and place != folder and place.name != wanted:
            others.append(place)
            continue
        for path in files:
            if not is_utf8(str(path)):
                found.refused[path] = f"{printable_name(path)}: this name is not UTF-8; rename it"
            elif found.paths.setdefault(path.stem, path) != path:
                found.refused[path] = (
                    f"{path} would share the folder {path.stem} with {found.paths[path.stem]}; import it into another --cohort"
                )
        if files and place == folder:
            break
    if not found.paths and not found.refused:
        seen = f"; there are .h5 files in {others[0]}: name their folder if it is these" if others else ""
        raise MissingError(f"no .h5 files in {folder} or in a folder {wanted} below it{seen}")
    found.paths = {slide: found.paths[slide] for slide in sorted(found.paths, key=natural_key)}
    return found


def read_windows(tool: str, path: Path, patch_files: Path | None = None) -> SlideWindows:
    """Read where the windows of a slide are, and how large; the embeddings are not read.

    patch_files: the folder of CLAM's files that say it; None: patches/ beside the folder of `path`, or beside that one's.
    Raises InputError for a file that is damaged, lacks a data set, or does not say how large its windows are.
    """
    with closing(open_hdf5(path)) as file:
        features, coords = _dataset(file, "features", path), _dataset(file, "coords", path)
        try:
            said, encoder = dict(coords.attrs), features.attrs.get("encoder")
            places = np.asarray(coords[0] if coords.ndim == 3 and len(coords) == 1 else coords[()])
            shape = features.shape[1:] if features.ndim == 3 and len(features) == 1 else features.shape
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); copy it again, or embed the slide again") from None
        if features.dtype.kind != "f":
            raise InputError(f"{path} has features of type {features.dtype}, expected floating point numbers")
    if places.size == 0:
        places, shape = np.zeros((0, 2), np.int64), (0, shape[-1] if len(shape) == 2 else 0)
    if places.ndim != 2 or places.shape[1] != 2 or len(shape) != 2 or shape[0] != len(places):
        raise InputError(f"{path} has coords {places.shape} and features {shape}, expected (N, 2) and (N, D)")
    if places.dtype.kind not in "iuf" or (places != np.round(places)).any() or (places < 0).any():
        raise InputError(f"{path} has coords that are no pixels of the slide: expected whole numbers of at least 0")
    if tool == "clam" and "patch_size" not in said:
        said = _read_patch_file(path, patch_files)
    name = None if encoder is None or isinstance(encoder, h5py.Empty) else str(encoder)
    if name in (None, "None") and path.parent.name.startswith("features_"):
        name = path.parent.name.removeprefix("features_")
    return _describe(path, places.astype(np.int64), said, None if name == "None" else name, shape[1])


def _dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    try:
        data = file.get(name)
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); copy it again, or embed the slide again") from None
    if not isinstance(data, h5py.Dataset) or data.shape is None or data.ndim == 0:
        raise InputError(
            f"{path} has no data set {name}, but {', '.join(map(str, file)) or 'nothing'}; expected features and coords"
        )
    return data


def _read_patch_file(path: Path, folder: Path | None) -> dict[str, Any]:
    """Read what CLAM says of the windows of the slide of `path`, in a file of that name in its folder patches/."""
    places = [path.parent.with_name("patches"), path.parent.parent.with_name("patches")] if folder is None else [folder]
    found = next((place / path.name for place in places if (place / path.name).is_file()), None)
    if found is None:
        raise MissingError(
            f"{path} does not say how large its windows are, and there is no {' or '.join(str(place / path.name) for place in places)}; "
            "name the folder of CLAM's patch files with --patch-files"
        )
    with closing(open_hdf5(found)) as file:
        return dict(_dataset(file, "coords", found).attrs)


def _describe(path: Path, coords: np.ndarray, said: Mapping[str, Any], encoder: str | None, width: int) -> SlideWindows:
    """Return the windows that the attributes of `coords` describe, as TRIDENT or as CLAM has them."""
    pixels = _number(said, "patch_size", path)
    if pixels is None:
        raise InputError(f"{path} does not say how large its windows are: coords has no attribute patch_size")
    target, level0 = _number(said, "target_magnification", path), _number(said, "level0_magnification", path)
    side = _number(said, "patch_size_level0", path)
    size = (_number(said, "level0_width", path), _number(said, "level0_height", path))
    if target is not None:
        if side is None and level0 is None:
            raise InputError(
                f"{path} says neither patch_size_level0 nor level0_magnification; extract its windows again"
            )
        side = side or pixels * (level0 or target) / target
    else:  # CLAM's steps are whole multiples of the level's scale
        down = _number(said, "downsample", path) if "downsample" in said else None
        if down is None and _number(said, "patch_level", path, least=0) != 0:
            raise InputError(f"{path} does not say the downsample of level {said.get('patch_level')}")
        side = pixels * int((down or 1.0) + 1e-6) * (_number(said, "custom_downsample", path) or 1)
    return SlideWindows(
        path=path,
        coords=coords,
        pixels=round(pixels),
        side=round(side),
        mpp=None if target is None else MPP_AT_1X / target,
        overlap=round(_number(said, "overlap", path, least=0) or 0),
        encoder=encoder,
        width=width,
        slide_size=None if size[0] is None or size[1] is None else (round(size[0]), round(size[1])),
    )


def _number(said: Mapping[str, Any], name: str, path: Path, least: float = 1e-3) -> float | None:
    """Return an attribute that is a number, or the first of several; None where it is not there, or "None"."""
    value = said.get(name)
    if value is None or isinstance(value, h5py.Empty) or (isinstance(value, str) and value in ("None", "NA")):
        return None
    try:
        number = float(np.ravel(value)[0])
    except (ValueError, TypeError, IndexError):
        number = math.nan
    if not least <= number < math.inf:
        raise InputError(f"{path}: the attribute {name} of coords is {value}, expected a number of at least {least:g}")
    return number


def check_windows(windows: SlideWindows, mpp: float | None, suffix: str) -> None:
    """Check that windows are such as condition a network. mpp: of the windows, where the file does not say it.

    Raises InputError naming the file, what was got, what was expected, and what to do.
    """
    path, mpp = windows.path, windows.mpp or mpp
    again = "embed the slides again in windows of 256 pixels at 20x"
    if mpp is None:
        raise InputError(
            f"{path} has windows of {windows.pixels} pixels, and does not say of how many microns each: give --mpp, or the slides "
            "with --slides"
        )
    same = abs(windows.pixels * mpp / WINDOW_MICRONS - 1) <= RESOLUTION_TOLERANCE
    if not same or mpp > MPP * (1 + RESOLUTION_TOLERANCE):
        raise InputError(
            f"{path} has windows of {windows.pixels} pixels at {mpp:.3g} um/px ({MPP_AT_1X / mpp:.3g}x), expected {WINDOW} at {MPP} (20x), "
            f"or as much tissue in finer pixels; {again}"
        )
    step = measure_step(windows.coords)
    overlap = windows.overlap or (0 if step is None else max(0, windows.side - 1 - step))
    if overlap:
        raise InputError(
            f"{path} has windows that overlap{'' if not windows.overlap else f' by {windows.overlap} pixels'}, expected none; "
            f"{again}, without overlap"
        )
    usual = windows.encoder in (None, ENCODER) and windows.width in (0, EMBEDDING_WIDTH)
    if suffix == SSL_PREFIX and not usual:
        named = "" if windows.encoder is None else f" of {windows.encoder}"
        raise InputError(
            f"{path} has embeddings{named} of width {windows.width}, expected UNI2-h ({ENCODER}) of width {EMBEDDING_WIDTH}; give them "
            "an ending of their own with --embedding-suffix"
        )


def measure_step(coords: np.ndarray) -> int | None:
    """Return the most frequent distance of windows beside or below each other, in pixels; None without such."""
    distances = []
    for across, along in ((0, 1), (1, 0)):
        ordered = coords[np.lexsort((coords[:, across], coords[:, along]))]
        apart = np.diff(ordered, axis=0)
        distances.append(apart[(apart[:, along] == 0) & (apart[:, across] > 0), across])
    values, counts = np.unique(np.concatenate(distances), return_counts=True)
    return int(values[counts.argmax()]) if len(values) else None


def iterate_embeddings(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the embeddings of a file, float16 (n, D), some at a time, each with the row of its first.

    Raises InputError for a damaged file, and for values that are not finite in float16.
    """
    with closing(open_hdf5(path)) as file:
        data = _dataset(file, "features", path)
        batched = data.ndim == 3
        shape = data.shape[1:] if batched else data.shape
        if len(shape) != 2:  # of a slide without windows
            return
        chunk: Sequence[int] | None = data.chunks
        rows = max(1, chunk[-2]) if chunk else 1
        at_once = max(ROWS_AT_ONCE // rows, 1) * rows  # whole chunks, which are decompressed once
        for start in range(0, shape[0], at_once):
            try:
                part = data[0, start : start + at_once] if batched else data[start : start + at_once]
            except (OSError, RuntimeError) as error:
                raise InputError(f"{path} is damaged ({error}); copy it again, or embed the slide again") from None
            with np.errstate(over="ignore"):
                half = np.ascontiguousarray(part, dtype=np.float16)
            if not np.isfinite(half).all():
                bad = int((~np.isfinite(half)).sum())
                raise InputError(f"{path}: {bad} values are not finite in float16; embed the slide again")
            yield start, half
