"""Registrations of two slides: affine maps, read from a file or fitted to landmarks.

A map is a matrix, float64 (3, 3), with (x', y', 1) = matrix (x, y, 1): from pixels of the source's finest level to pixels of the
target's, x to the right and y down. Coordinates are continuous: pixel i of a row reaches from i to i + 1.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import read_lines, read_text

MATRIX_SUFFIXES = (".json", ".csv", ".txt", ".npy")
LANDMARK_SUFFIXES = (".csv", ".pts", ".geojson", ".json")
FEWEST_LANDMARKS = 3  # that determine an affine map
SMALLEST_SCALE = 1e-6  # of a map; less is a map onto a line
EXPECTED = "expected an affine matrix of 2 x 3 or 3 x 3 numbers, from source pixels (x, y) to target pixels"


def read_registration(path: Path) -> np.ndarray:
    """Read an affine map, float64 (3, 3): .json (nested lists), .csv or .txt (a row a line), or .npy, of (2, 3) or (3, 3).

    Raises MissingError, and InputError for a file that holds no such matrix, or one that cannot be inverted.
    """
    if not path.is_file():
        raise MissingError(f"--registration: no file {path}")
    suffix = path.suffix.lower()
    if suffix not in MATRIX_SUFFIXES:
        raise InputError(f"--registration: {path} is none of {', '.join(MATRIX_SUFFIXES)}; {EXPECTED}")
    try:
        values = _read_values(path, suffix)
    except (ValueError, TypeError, EOFError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} holds no matrix ({error}); {EXPECTED}") from None
    if values.shape not in ((2, 3), (3, 3)) or not np.isfinite(values).all():
        raise InputError(f"{path} holds {' x '.join(map(str, values.shape)) or 'one'} numbers; {EXPECTED}, all finite")
    matrix = np.vstack([values[:2], (0, 0, 1)])
    if len(values) == 3 and not np.allclose(values[2], (0, 0, 1)):
        raise InputError(f"{path} has the last row {values[2].tolist()}, which is no affine map: expected 0, 0, 1")
    if map_scale(matrix) < SMALLEST_SCALE:
        raise InputError(f"{path} maps the plane onto a line or a point; {EXPECTED}")
    return matrix


def _read_values(path: Path, suffix: str) -> np.ndarray:
    if suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    if suffix == ".json":
        content = json.loads(read_text(path))
        if isinstance(content, dict):
            raise InputError(
                f"{path} holds {', '.join(list(content)[:3]) or 'nothing'} by name, as transforms of elastix and wsireg do, which are not "
                f"read; {EXPECTED}, as nested lists"
            )
        return np.array(content, dtype=np.float64)
    rows = [re.split(r"[,;\s]+", line.strip(" ,;")) for line in read_lines(path) if not line.startswith("#")]
    return np.array([[float(value) for value in row] for row in rows], dtype=np.float64)


def map_scale(matrix: np.ndarray) -> float:
    """Return how many target pixels a source pixel is long: the root of the factor by which areas grow."""
    return math.sqrt(abs(float(np.linalg.det(matrix[:2, :2]))))


def apply_map(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return points (n, 2) of the source in the target."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def read_landmarks(path: Path) -> np.ndarray:
    """Read points, float64 (n, 2), x and y: .csv with the columns X and Y (BIRL, ANHIR), .pts, or GeoJSON with points.

    .pts: a line `point`, one with their number, and one for each (ITK and elastix). Raises MissingError, InputError.
    """
    if not path.is_file():
        raise MissingError(f"--landmarks: no file {path}")
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            points = list(_points_of_csv(path))
        elif suffix == ".pts":
            points = list(_points_of_pts(path))
        elif suffix in (".geojson", ".json"):
            points = list(_points_of_geojson(json.loads(read_text(path))))
        else:
            raise InputError(f"--landmarks: {path} is none of {', '.join(LANDMARK_SUFFIXES)}")
        found = np.array(points, dtype=np.float64).reshape(-1, 2)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not as landmarks are written ({error!r})") from None
    if len(found) < FEWEST_LANDMARKS or not np.isfinite(found).all():
        raise InputError(
            f"{path} has {len(found)} landmarks: expected at least {FEWEST_LANDMARKS}, with finite x and y"
        )
    return found


def _points_of_csv(path: Path) -> Iterator[tuple[float, float]]:
    rows = csv.DictReader(StringIO(read_text(path)))
    columns = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    if not {"x", "y"} <= columns.keys():
        raise InputError(f"{path} has the columns {', '.join(rows.fieldnames or ()) or 'none'}: expected X and Y")
    for row in rows:
        yield float(row[columns["x"]]), float(row[columns["y"]])


def _points_of_pts(path: Path) -> Iterator[tuple[float, float]]:
    lines = read_lines(path)
    if len(lines) < 2 or lines[0].lower() not in ("point", "index"):
        raise InputError(f"{path} does not begin with a line `point` and one with their number")
    if len(lines) - 2 != int(lines[1]):
        raise InputError(f"{path} has {len(lines) - 2} points, and says that it has {lines[1]}")
    for line in lines[2:]:
        x, y = map(float, line.split())
        yield x, y


def _points_of_geojson(content: Any) -> Iterator[tuple[float, float]]:
    """Yield the points, and those of groups of points, as QuPath writes both, in order; other shapes are left out."""
    features = content["features"] if isinstance(content, dict) and "features" in content else content
    for feature in features if isinstance(features, list) else [features]:
        geometry = feature["geometry"]
        points = {"Point": [geometry["coordinates"]], "MultiPoint": geometry["coordinates"]}.get(geometry["type"], [])
        yield from ((point[0], point[1]) for point in points)


def fit_landmarks(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the affine map with the least squared distances, float64 (3, 3), and those distances (n,), in target pixels.

    source, target: the same points (n, 2) in both. Raises InputError where they do not determine a map.
    """
    known = np.column_stack([source, np.ones(len(source))])
    centred = source - source.mean(axis=0)
    if len(source) < FEWEST_LANDMARKS or np.linalg.matrix_rank(centred) < 2:
        raise InputError(
            f"{len(source)} landmarks that lie on one line determine no map: expected at least {FEWEST_LANDMARKS} that do not"
        )
    solution, *_ = np.linalg.lstsq(known, target, rcond=None)
    matrix = np.vstack([solution.T, (0, 0, 1)])
    if map_scale(matrix) < SMALLEST_SCALE:
        raise InputError(
            "the landmarks of the target lie on one line, and determine no map; are they in the same order?"
        )
    return matrix, np.linalg.norm(apply_map(matrix, source) - target, axis=1)


def check_inside(points: np.ndarray, path: Path, width: float, height: float, slide: Path) -> None:
    """Check that landmarks lie in a slide of so many pixels. Raises InputError: they may be of another scale."""
    beyond = points[(points < 0).any(axis=1) | (points > (width, height)).any(axis=1)]
    if len(beyond):
        x, y = beyond[0]
        raise InputError(
            f"{path} has a landmark at {x:g}, {y:g}, and {slide} has {width:.0f} x {height:.0f} pixels: expected pixels of its finest "
            "level; are the landmarks of an image of another scale?"
        )
