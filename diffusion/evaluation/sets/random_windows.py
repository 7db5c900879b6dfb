"""Windows drawn at random from images. Letters: B windows, S their side in pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from diffusion.data.index.patch_index import PatchIndex
from diffusion.data.sampler import Permutation
from diffusion.data.slides.reader import PlainImage
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.formats import PATCHES_DIR
from diffusion.utils.errors import InputError
from diffusion.utils.seeds import mix_seed

MAX_UNUSABLE = 100  # images in a row, from the first, after which a set counts as unusable


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder; `name` gives the path of the i-th, so that an index of millions is not listed."""

    folder: Path
    count: int
    name: Callable[[int], str]

    @classmethod
    def from_folder(cls, folder: Path) -> ImageFiles:
        """Take all images in a folder and those below it. Raises as `ImageSet.open`."""
        files = ImageSet.open(folder).files.values()
        names = [file.relative_to(folder).as_posix() for file in files]
        return cls(folder, len(names), names.__getitem__)

    @classmethod
    def from_index(cls, root: Path, index: PatchIndex) -> ImageFiles:
        """Take the patches of an index."""
        return cls(root / PATCHES_DIR, len(index), index.name)


class Window(NamedTuple):
    """A square of an image: its file and its top-left pixel."""

    name: str
    left: int
    top: int

    def __str__(self) -> str:
        return f"{self.name} ({self.left}, {self.top})"


@dataclass(frozen=True)
class RandomWindows:
    """Squares of `size` pixels, in the order in which they were drawn. bad: images that were left out, and the reasons."""

    folder: Path
    size: int
    places: list[Window]
    bad: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, numbers: Sequence[int]) -> torch.Tensor:
        """Read some windows, uint8 (B, 3, S, S). Raises MissingError or InputError for files that have changed."""
        squares = []
        for name, left, top in (self.places[i] for i in numbers):
            squares.append(np.array(PlainImage(self.folder / name).read(left, top, self.size)))
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)

    def batches(self, batch_size: int) -> Iterator[range]:
        """Yield the numbers of all windows in batches."""
        for first in range(0, len(self), batch_size):
            yield range(first, min(first + batch_size, len(self)))


def draw_windows(images: ImageFiles, count: int, size: int, seed: int = 0, strict: bool = False) -> RandomWindows:
    """Draw at most `count` windows: one of each image, then, where there are too few images, more of each.

    An image that cannot be read, is not RGB or is smaller than a window is left out, and another one takes its place;
    if strict, it is an error. Windows of one image lie side by side from its top-left corner.
    Raises InputError for fewer than two windows, and when none of the first images can be used.
    """
    bad: dict[str, str] = {}
    places = list(islice(_draw_in_rounds(images, size, seed, strict, bad), count))
    if len(places) < 2:
        reason = f"; {next(iter(bad.values()))}" if bad else ""
        raise InputError(
            f"{images.folder}: got {len(places)} windows of {size} pixels from {images.count} images, "
            f"expected at least 2{reason}"
        )
    return RandomWindows(images.folder, size, places, bad)


def _draw_in_rounds(images: ImageFiles, size: int, seed: int, strict: bool, bad: dict[str, str]) -> Iterator[Window]:
    """Yield one window of each image in a random order, then a second of each, and so on; note unusable images in `bad`."""
    order, remaining = Permutation(images.count, seed), []
    for i in map(order, range(images.count)):
        name = images.name(i)
        try:
            windows = _shuffled_windows(images.folder / name, name, size, mix_seed(seed, i))
        except ValueError as error:  # an InputError is one, and so is what Pillow says of some damage
            if strict:
                raise InputError(f"{error}; without --strict it would be left out and named") from None
            bad[name] = str(error)
            if len(bad) >= MAX_UNUSABLE and not remaining:
                raise InputError(f"none of the first {MAX_UNUSABLE} images can be used: {error}") from None
            continue
        remaining.append(windows)
        yield windows.pop()
    while any(remaining):
        for windows in filter(None, remaining):
            yield windows.pop()


def _shuffled_windows(path: Path, name: str, size: int, seed: int) -> list[Window]:
    """Return all windows of an image in a random order. Raises InputError for one that is smaller than a window."""
    image = PlainImage(path)
    columns, rows = image.width // size, image.height // size
    if not columns * rows:
        raise InputError(f"{path} has {image.width} x {image.height} pixels, less than a window of {size}")
    order = np.random.default_rng(seed).permutation(columns * rows).tolist()
    return [Window(name, place % columns * size, place // columns * size) for place in order]
