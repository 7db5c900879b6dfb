"""Slides and images as tiles of several levels, each half of the one before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Protocol

from PIL import Image

from diffusion.data.images import open_image
from diffusion.data.slides.reader import MAX_LEVEL_PIXELS, SLIDE_SUFFIXES, open_any
from diffusion.utils.errors import InputError

TILE = 256  # pixels a side of a tile


class Zoom(Protocol):
    """A picture in levels, each half of the one before. levels: width and height, the finest first."""

    levels: list[tuple[int, int]]

    def read(self, level: int, column: int, row: int) -> Image.Image:
        """Read a tile in RGB, smaller at the ends of the picture. Raises InputError."""
        ...


def open_zoom(path: Path) -> Zoom:
    """Open a slide or an image as tiles. Raises InputError."""
    import openslide

    if path.suffix.lower() in SLIDE_SUFFIXES and openslide.OpenSlide.detect_format(path) is not None:
        return SlideZoom(path)
    image = open_image(path, fault="is neither a slide nor an image that can be read", too_large="make a slide of it")
    return ImageZoom(image if image.mode == "RGB" else image.convert("RGB"))


class ImageZoom:
    """An image in memory, with its levels, a third as large as itself."""

    def __init__(self, image: Image.Image):
        self._images = [image]
        while max(self._images[-1].size) > TILE:
            self._images.append(self._images[-1].reduce(2))
        self.levels = [image.size for image in self._images]

    def read(self, level: int, column: int, row: int) -> Image.Image:
        """Read a tile as `Zoom` has it."""
        width, height = self.levels[level]
        left, top = TILE * column, TILE * row
        return self._images[level].crop((left, top, min(left + TILE, width), min(top + TILE, height)))


class SlideZoom:
    """A slide that OpenSlide reads, by its deep zoom; where it has no small level, coarse tiles come from a thumbnail."""

    def __init__(self, path: Path):
        import openslide
        from openslide.deepzoom import DeepZoomGenerator

        self._path, self._lock = path, threading.Lock()
        try:
            self._slide = openslide.OpenSlide(path)
            self._zoom = DeepZoomGenerator(self._slide, tile_size=TILE, overlap=0)
        except openslide.OpenSlideError as error:
            raise InputError(f"{path} cannot be opened ({error})") from None
        sizes = list(reversed(self._zoom.level_dimensions))
        self.levels = sizes[: 1 + next((i for i, size in enumerate(sizes) if max(size) <= TILE), len(sizes) - 1)]
        # the first level that is too large to be read, and those from there on
        self._coarse: tuple[int, ImageZoom] | None = None

    def read(self, level: int, column: int, row: int) -> Image.Image:
        """Read a tile as `Zoom` has it."""
        import openslide

        down = self._slide.level_downsamples[self._slide.get_best_level_for_downsample(2**level)]
        try:
            if (TILE * 2**level / down) ** 2 > MAX_LEVEL_PIXELS:
                return self._read_coarse(level, column, row)
            return self._zoom.get_tile(self._zoom.level_count - 1 - level, (column, row)).convert("RGB")
        except openslide.OpenSlideError as error:
            raise InputError(f"{self._path} is broken at tile {column}, {row} of level {level} ({error})") from None

    def _read_coarse(self, level: int, column: int, row: int) -> Image.Image:
        with self._lock:
            if self._coarse is None or self._coarse[0] > level:
                with open_any(self._path, 1.0, 1.0) as slide:  # whatever its resolution: pixel for pixel
                    small = slide.thumbnail(max(self.levels[level]))
                self._coarse = level, ImageZoom(small.resize(self.levels[level]))
        first, zoom = self._coarse
        return zoom.read(min(level - first, len(zoom.levels) - 1), column, row)
