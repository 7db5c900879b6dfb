"""Features of the images in a folder. Letters: N images, D width of the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from diffusion.encoders.embedders import WINDOW, PatchEmbedder
from diffusion.errors import InputError, MissingError

SUFFIXES = (".png", ".jpg", ".jpeg")


def list_images(folder: Path) -> dict[str, Path]:
    """The images in a folder and those below it, by name: the path below the folder without its suffix; in name order.

    Raises MissingError when there is none, InputError when two have one name.
    """
    if not folder.is_dir():
        raise MissingError(f"no folder of images at {folder}")
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in images:
            raise InputError(f"{images[name]} and {path} have one name; keep one of them")
        images[name] = path
    if not images:
        raise MissingError(f"no image in {folder}; expected {', '.join(SUFFIXES)}")
    return dict(sorted(images.items()))


def embed_images(paths: Sequence[Path], embedder: PatchEmbedder, batch_size: int = 32, label: str = "") -> torch.Tensor:
    """Embeddings (N, D) of images of 256 x 256 pixels, in float32 on the CPU, in the order of `paths`.

    Nothing is resized. Raises InputError for an image of another size or one that cannot be read.
    """
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    features = []
    with tqdm(total=len(paths), desc=label or "embedding", unit="image", leave=False) as progress:
        for batch in batches:
            features.append(embedder.embed(torch.stack([read_window(path) for path in batch])).cpu())
            progress.update(len(batch))
    return torch.cat(features)


def read_window(path: Path) -> torch.Tensor:
    """An image of 256 x 256 pixels as uint8 (3, 256, 256)."""
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.array(image)
    except (OSError, SyntaxError) as error:
        raise InputError(f"{path} is no image that can be read ({error})") from error
    if mode != "RGB":
        raise InputError(f"{path} is a {mode} image, expected RGB")
    if pixels.shape[:2] != (WINDOW, WINDOW):
        height, width = pixels.shape[:2]
        raise InputError(
            f"{path} has {width} x {height} pixels, expected {WINDOW} x {WINDOW}: images are scored as they are, never resized"
        )
    return torch.from_numpy(pixels).permute(2, 0, 1)
