"""Folders of images to score: their files, and the pixels of these as windows of 256. Letters: k windows of an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from diffusion.data.images import open_image
from diffusion.data.slides.patches import is_mask
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.folders import SkippedEntries, walk_files
from diffusion.utils.windows import cut_windows

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
UNSUPPORTED_SUFFIXES = frozenset(
    (".gif", ".heic", ".jp2", ".jpe", ".jpf", ".ppm", ".avif", ".svs", ".ndpi", ".mrxs", ".scn")
)
LOSSY = ("JPEG", "WEBP", "JPEG in TIFF")  # formats of lossy compression (WEBP may be lossless)
OVERVIEW_FOLDER = re.compile(r"slides_\d+")  # folders of pixcell patches: pictures of whole slides beside their patches
MAX_PIXELS = 2**30  # 3 GiB in memory


@dataclass(frozen=True)
class ImageSet:
    """The images of a folder and those below it, in name order; a name is the path below the folder without its suffix.

    Overviews of slides, which lie beside their patches, and hidden files and folders are left out.
    fit: what to do with an image that is not 256 x 256: "refuse" it, "resize" its central square, antialiased, or take each
    of its complete "windows" of 256 as an image.
    """

    folder: Path
    files: dict[str, Path]
    fit: str = "refuse"

    @classmethod
    def open(cls, folder: Path, fit: str = "refuse") -> ImageSet:
        """List the images of a folder. Raises MissingError when there is none, InputError when two have the same name."""
        if not folder.is_dir():
            raise MissingError(f"no folder of images at {folder}")
        files: dict[str, Path] = {}
        skipped = SkippedEntries()
        for path in walk_files(folder, skipped, enter=lambda name: not OVERVIEW_FOLDER.fullmatch(name)):
            if path.suffix.lower() in UNSUPPORTED_SUFFIXES:
                skipped.add(f"images of other kinds than {', '.join(SUFFIXES)}", path)
            if path.suffix.lower() not in SUFFIXES:
                continue
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in files:
                raise InputError(f"{files[name]} and {path} have one name; keep one of them")
            files[name] = path
        skipped.report()
        files = {name: path for name, path in files.items() if not is_mask(name, files)}  # which lie beside patches
        if not files:
            raise MissingError(f"no image in {folder}; expected {', '.join(SUFFIXES)}")
        return cls(folder, dict(sorted(files.items())), fit)


class DecodedImage(NamedTuple):
    """A file that was read: its windows, uint8 (k, 256, 256, 3), its format, rows and columns of pixels; or what is wrong with it."""

    windows: np.ndarray | None
    format: str = ""
    wrong: str = ""
    refused: bool = False  # readable, but of a size that is refused
    size: tuple[int, int] = (0, 0)


class WindowDataset(Dataset):
    """A data set of decoded files, for the workers of a loader: what is wrong with a file is returned, not raised."""

    def __init__(self, paths: Sequence[Path], fit: str):
        self.paths, self.fit = paths, fit

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> DecodedImage:
        return decode_image(self.paths[i], self.fit)


def decode_image(path: Path, fit: str = "refuse") -> DecodedImage:
    """Read an image and cut, or resize, it to windows; what is wrong with it is returned."""
    try:
        image = open_image(path, MAX_PIXELS)
    except InputError as error:
        return DecodedImage(None, wrong=f"cannot be read ({str(error).removeprefix(f'{path} ')})")
    if image.mode != "RGB":
        return DecodedImage(None, wrong=f"has mode {image.mode}: convert it to RGB")
    width, height = image.size
    about = f"has {width} x {height} pixels, "
    if (width, height) == (WINDOW, WINDOW):
        windows = np.array(image)[None]
    elif fit == "refuse":
        return DecodedImage(None, wrong=f"{about}expected {WINDOW} x {WINDOW}", refused=True)
    elif fit == "resize":
        windows = np.array(_center_square(image).resize((WINDOW, WINDOW), Image.Resampling.BICUBIC))[None]
    elif min(width, height) < WINDOW:
        return DecodedImage(None, wrong=f"{about}less than a window of {WINDOW}", refused=True)
    else:
        windows = _windows(np.array(image))
    in_jpeg = image.format == "TIFF" and image.info.get("compression") == "jpeg"
    return DecodedImage(windows, "JPEG in TIFF" if in_jpeg else image.format or "", size=(height, width))


def _center_square(image: Image.Image) -> Image.Image:
    """Return the largest square in the middle."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _windows(pixels: np.ndarray) -> np.ndarray:
    """Cut (H, W, 3) to (k, 256, 256, 3), row-major; incomplete windows at the right and below are left out."""
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return cut_windows(images, WINDOW).permute(0, 2, 3, 1).contiguous().numpy()


def load_window(path: Path, fit: str, number: int) -> Image.Image:
    """Return one window of a file as a picture to show. Raises InputError for a file that can no longer be read."""
    decoded = decode_image(path, fit)
    if decoded.windows is None:
        raise InputError(f"{path} {decoded.wrong}")
    return Image.fromarray(decoded.windows[number])
