"""Outlines of nuclei in the files that other programs write: GeoJSON of QuPath, JSON of CellViT, HoVer-Net and StarDist.

Coordinates are pixels of the image that the program saw, x to the right and y downwards; the files do not say how large these pixels
are, so whoever reads them has to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion.utils.errors import InputError, MissingError

SUFFIXES = (".geojson", ".json")
FEWEST_POINTS = 3


class Outline(NamedTuple):
    """One object: its outer ring (n, 2) of x and y, the rings of its holes, and its class, empty where it has none."""

    ring: np.ndarray
    holes: tuple[np.ndarray, ...] = ()
    kind: str = ""


def read_outlines(path: Path) -> list[Outline]:
    """Read the objects of a file.

    Known are GeoJSON (a FeatureCollection, or a list of Features; polygons, with `properties.classification.name`, and of a
    QuPath cell its nucleus), CellViT's `cells`, HoVer-Net's `nuc`, and StarDist's `coord`. Points and lines are left out.
    Raises MissingError, and InputError for a file that is none of these, and one without any object.
    """
    if not path.is_file():
        raise MissingError(f"no annotations at {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON file ({error})") from None
    try:
        outlines = list(_outlines_of(content))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{path} has an object that is not as its format has it ({error!r})") from None
    if not outlines:
        raise InputError(
            f"{path} has no outline: expected GeoJSON with polygons, or JSON of CellViT (cells), HoVer-Net (nuc) or StarDist (coord)"
        )
    return outlines


def _outlines_of(content: Any) -> Iterator[Outline]:
    if isinstance(content, Mapping):
        if "cells" in content:  # CellViT: cells.json, with the contour in pixels
            yield from _contours(content["cells"])
        elif "nuc" in content:  # HoVer-Net: objects by number
            yield from _contours(content["nuc"].values())
        elif "coord" in content:  # StarDist's polygons: (n, 2, k), rows first
            for rows, columns in content["coord"]:
                yield Outline(_ring(np.stack([columns, rows], 1)))
        elif content.get("type") == "FeatureCollection":
            yield from _features(content["features"])
        elif content.get("type") == "Feature":
            yield from _features([content])
    elif isinstance(content, Sequence) and not isinstance(content, str):
        yield from _features(content)


def _contours(objects: Iterable[Mapping[str, Any]]) -> Iterator[Outline]:
    for each in objects:
        contour = np.asarray(each["contour"], dtype=np.float64)
        if len(contour) >= FEWEST_POINTS:  # a few pixels are traced by two
            yield Outline(_ring(contour), kind=str(each["type"]) if each.get("type") is not None else "")


def _features(features: Iterable[Mapping[str, Any]]) -> Iterator[Outline]:
    for feature in features:
        geometry = feature.get("nucleusGeometry") or feature["geometry"]
        kind = _class_name(feature.get("properties") or {})
        if geometry["type"] == "Polygon":
            polygons = [geometry["coordinates"]]
        elif geometry["type"] == "MultiPolygon":
            polygons = geometry["coordinates"]
        else:
            continue
        for outer, *holes in polygons:
            yield Outline(_ring(outer), tuple(_ring(hole) for hole in holes), kind)


def _class_name(properties: Mapping[str, Any]) -> str:
    classification = properties.get("classification")
    if isinstance(classification, Mapping):
        return str(classification.get("name", ""))
    return str(classification or "")


def _ring(points: Any) -> np.ndarray:
    ring = np.asarray(points, dtype=np.float64)
    if ring.ndim != 2 or ring.shape[1] < 2 or not np.isfinite(ring).all():
        raise ValueError(f"a ring of shape {ring.shape}")
    return ring[:, :2]


def draw_outlines(
    outlines: Sequence[Outline], x: float, y: float, scale: float, size: int, classes: Sequence[str] = ()
) -> np.ndarray:
    """Draw objects as numbers from 1 on, int32 (size, size); with classes, as the numbers of their classes, from 1 on.

    x, y: the corner of the square, in the outlines' pixels; scale: pixels of the square for each of theirs. A pixel belongs to an
    object that has its middle. Objects that overlap hide those drawn before them.
    """
    from skimage.draw import polygon

    canvas = np.zeros((size, size), np.int32)
    for number, outline in enumerate(outlines, 1):
        value = classes.index(outline.kind) + 1 if classes else number
        inside = np.zeros_like(canvas, dtype=bool)
        for ring, filled in ((outline.ring, True), *((hole, False) for hole in outline.holes)):
            columns, rows = ((ring - (x, y)) * scale - 0.5).T  # the middle of pixel i is at i + 0.5
            inside[polygon(rows, columns, canvas.shape)] = filled
        canvas[inside] = value
    return canvas
