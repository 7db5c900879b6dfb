"""The parts of the report's page, one HTML file without network: pairs of pictures, contact sheets, and the template."""

from __future__ import annotations

import base64
import io
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion.evaluation.metrics.pairs import NearestNeighbours, Pairs
from diffusion.evaluation.sets.features import Row
from diffusion.evaluation.sets.image_set import ImageSet, load_window
from diffusion.utils.text import format_number

PAIRS_SHOWN = 6  # pairs of each of best, median and worst; nearest neighbours
SHEET_COLUMNS, SHEET_ROWS, SHEET_CELL = 8, 6, 128  # of a contact sheet; pixels
GRID_COLUMNS, GRID_PAIRS, GRID_CELL = 8, 16, 104  # of the picture of pairs, which fits a README
QUALITY = 90  # of the JPEG copies on the page, which keep it small; scores are taken from the files


class ImagePair(NamedTuple):
    """Two pictures that are shown together, as data URIs, with their name, cosine similarity and group."""

    name: str
    first: str
    second: str
    similarity: float
    group: str = ""


def choose_ranked(similarity: np.ndarray, each: int = PAIRS_SHOWN) -> list[tuple[str, int]]:
    """Return group and number of the most similar, those around the median and the least similar pairs, each once."""
    order = np.argsort(-similarity, kind="stable")
    count = len(order)
    middle = max(0, (count - each) // 2)
    spans = (("best", order[:each]), ("median", order[middle : middle + each]), ("worst", order[-each:]))
    groups: dict[int, str] = {}
    for group, numbers in spans:
        for number in numbers.tolist():
            groups.setdefault(number, group)
    return [(groups[number], number) for number in order.tolist() if number in groups]


def build_ranked_pairs(pairs: Pairs, real: ImageSet, synthetic: ImageSet) -> list[ImagePair]:
    """Return the best, median and worst pairs, the most similar first."""
    return [
        ImagePair(
            row_title(pairs.rows[i]),
            window_uri(real, pairs.rows[i]),
            window_uri(synthetic, pairs.rows[i]),
            float(pairs.similarity[i]),
            group,
        )
        for group, i in choose_ranked(pairs.similarity)
    ]


def build_nearest_pairs(
    found: NearestNeighbours, rows: Sequence[Row], synthetic: ImageSet, training_rows: Sequence[Row], training: ImageSet
) -> list[ImagePair]:
    """Return the samples that are nearest to a training image, with that image, the nearest first."""
    order = np.argsort(-found.similarity, kind="stable")[:PAIRS_SHOWN].tolist()
    partners = {i: training_rows[int(found.number[i])] for i in order}
    return [
        ImagePair(
            row_title(partner),
            window_uri(synthetic, rows[i]),
            window_uri(training, partner),
            float(found.similarity[i]),
        )
        for i, partner in partners.items()
    ]


def row_title(row: Row) -> str:
    """Return the name of an image and, from the second window on, the number of the window."""
    return f"{row.name}, window {row.window}" if row.window else row.name


def window_uri(images: ImageSet, row: Row) -> str:
    """Return one window of an image as a data URI."""
    return jpeg_uri(load_window(images.files[row.name], images.fit, row.window))


def contact_sheet_uri(images: ImageSet, rows: Sequence[Row], seed: int) -> str:
    """Return images of a set, drawn by `seed`, as one picture in a data URI."""
    count = min(SHEET_COLUMNS * SHEET_ROWS, len(rows))
    chosen = sorted(random.Random(seed).sample(range(len(rows)), count))
    size = (min(SHEET_COLUMNS, count) * SHEET_CELL, math.ceil(count / SHEET_COLUMNS) * SHEET_CELL)
    sheet = Image.new("RGB", size, "white")
    for place, i in enumerate(chosen):
        row, column = divmod(place, SHEET_COLUMNS)
        window = load_window(images.files[rows[i].name], images.fit, rows[i].window)
        sheet.paste(window.resize((SHEET_CELL, SHEET_CELL)), (column * SHEET_CELL, row * SHEET_CELL))
    return jpeg_uri(sheet)


def draw_pairs(pairs: Pairs, seed: int, count: int = GRID_PAIRS) -> list[Row]:
    """Draw at most `count` pairs; return them in name order."""
    return sorted(random.Random(seed).sample(pairs.rows, min(count, len(pairs.rows))))


def pairs_grid(real: Sequence[Image.Image], synthetic: Sequence[Image.Image]) -> Image.Image:
    """Return a picture of pairs, 8 in a row: a row of real images above the row of their synthetic ones."""
    cell, gap, margin = GRID_CELL, GRID_CELL // 32, GRID_CELL // 6
    columns = min(GRID_COLUMNS, len(real))
    bands = math.ceil(len(real) / columns)
    pitch = cell + gap
    band_height = 2 * pitch + 2 * gap
    grid = Image.new("RGB", (margin + columns * pitch, bands * band_height - gap), "white")
    for i, pair in enumerate(zip(real, synthetic, strict=True)):
        band, column = divmod(i, columns)
        for row, image in enumerate(pair):
            place = (margin + column * pitch, gap + band * band_height + row * pitch)
            grid.paste(image.resize((cell, cell)), place)
    for band in range(bands):
        for row, word in enumerate(("real", "synthetic")):
            grid.paste(_vertical_label(word, cell, margin), (0, gap + band * band_height + row * pitch))
    return grid


def _vertical_label(word: str, length: int, thickness: int) -> Image.Image:
    """Return a word that reads upwards, in a strip of thickness x length pixels."""
    strip = Image.new("RGB", (length, thickness), "white")
    font = ImageFont.load_default(thickness * 0.6)
    ImageDraw.Draw(strip).text((length / 2, thickness / 2), word, fill="black", anchor="mm", font=font)
    return strip.rotate(90, expand=True)


def png_uri(content: bytes) -> str:
    """Return the content of a PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def jpeg_uri(image: Image.Image) -> str:
    """Return a picture as a data URI of a JPEG."""
    picture = io.BytesIO()
    image.save(picture, format="JPEG", quality=QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(picture.getvalue()).decode('ascii')}"


def png_bytes(image: Image.Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    picture = io.BytesIO()
    image.save(picture, format="PNG", optimize=True)
    return picture.getvalue()


def render_page(template: Path, fields: Mapping[str, Any]) -> bytes:
    """Fill a jinja2 template, escaping every value; return the page in UTF-8."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["format_number"] = format_number
    return environment.from_string(template.read_text(encoding="utf-8")).render(**fields).encode("utf-8")
