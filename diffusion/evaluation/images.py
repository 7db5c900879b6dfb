"""Folders of images to score: which there are, and their pixels as windows of 256."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from diffusion.encoders.embedders import WINDOW
from diffusion.errors import InputError, MissingError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LOSSY = ("JPEG", "WEBP", "JPEG in TIFF")  # formats that (WEBP: may) have lost something
OVERVIEWS = re.compile(
    r"slides_\d+"
)  # folders of tools/extract_patches.py: pictures of whole slides beside their patches
MOST_PIXELS = 2**30  # 3 GiB in memory


@dataclass(frozen=True)
class ImageSet:
    """The images of a folder and those below it, by name: the path below the folder without its suffix; in name order.
    Pictures of whole slides, which lie beside their patches, are none of them.

    fit: what is done with an image that is not 256 x 256. "refuse" it; "resize" the square in its middle, antialiased;
    or take every whole one of its "windows" of 256 for an image.
    """

    folder: Path
    files: dict[str, Path]
    fit: str = "refuse"

    @classmethod
    def open(cls, folder: Path, fit: str = "refuse") -> ImageSet:
        """Raises MissingError when there is no image, InputError when two have one name."""
        if not folder.is_dir():
            raise MissingError(f"no folder of images at {folder}")
        files: dict[str, Path] = {}
        for path in sorted(folder.rglob("*")):
            if (
                path.suffix.lower() not in SUFFIXES
                or path.name.startswith(".")
                or OVERVIEWS.fullmatch(path.parent.name)
            ):
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in files:
                raise InputError(f"{files[name]} and {path} have one name; keep one of them")
            files[name] = path
        if not files:
            raise MissingError(f"no image in {folder}; expected {', '.join(SUFFIXES)}")
        return cls(folder, dict(sorted(files.items())), fit)


class Decoded(NamedTuple):
    """One file: its windows, uint8 (k, 256, 256, 3), and the format that it is in; or none, and why."""

    windows: np.ndarray | None
    format: str = ""
    wrong: str = ""
    refused: bool = False  # readable, but of a size that was not asked for


class DecodedImages(Dataset):
    """The windows of some files, for the workers of a loader: what is wrong with one is returned, not raised."""

    def __init__(self, paths: Sequence[Path], fit: str):
        self.paths, self.fit = paths, fit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Decoded:
        return decode(self.paths[i], self.fit)


def decode(path: Path, fit: str = "refuse") -> Decoded:
    """Read one image whole and cut, or resize, it to windows."""
    try:
        with _any_size(), Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return Decoded(None, wrong=f"cannot be read ({error})")
    if image.mode != "RGB":
        return Decoded(None, wrong=f"has mode {image.mode}: convert it to RGB")
    width, height = image.size
    about = f"has {width} x {height} pixels, "
    if (width, height) == (WINDOW, WINDOW):
        windows = np.array(image)[None]
    elif fit == "refuse":
        return Decoded(None, wrong=f"{about}expected {WINDOW} x {WINDOW}", refused=True)
    elif fit == "resize":
        windows = np.array(_middle(image).resize((WINDOW, WINDOW), Image.Resampling.BICUBIC))[None]
    elif min(width, height) < WINDOW:
        return Decoded(None, wrong=f"{about}less than a window of {WINDOW}", refused=True)
    else:
        windows = _windows(np.array(image))
    in_jpeg = image.format == "TIFF" and image.info.get("compression") == "jpeg"
    return Decoded(windows, "JPEG in TIFF" if in_jpeg else image.format)


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Have Pillow read pictures up to MOST_PIXELS: large ones are what we make."""
    usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MOST_PIXELS // 2  # it refuses twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def _middle(image: Image.Image) -> Image.Image:
    """The largest square in the middle."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _windows(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (k, 256, 256, 3), row-major; what is over at the right and below is left out."""
    rows, columns = pixels.shape[0] // WINDOW, pixels.shape[1] // WINDOW
    grid = pixels[: rows * WINDOW, : columns * WINDOW].reshape(rows, WINDOW, columns, WINDOW, 3)
    return grid.swapaxes(1, 2).reshape(rows * columns, WINDOW, WINDOW, 3)


def window_of(path: Path, fit: str, number: int) -> Image.Image:
    """One window of a file that can be read, as a picture to show."""
    return Image.fromarray(decode(path, fit).windows[number])
