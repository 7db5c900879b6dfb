"""The images that the small codec learns from: training and held-out regions, and augmented crops."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.data.batch import Batch
from diffusion.data.sampler import Draw
from diffusion.data.slides.reader import open_slide
from diffusion.utils.errors import MissingError

TRAINING_HEIGHT = 0.75  # of each image's height, from the top; the rest is held out
TILE = 256  # px, of scoring and of the final statistics
MIN_TISSUE = 0.25  # share of tissue in a tile that counts


@dataclass(frozen=True)
class CropBatch(Batch):
    """Crops (B, 3, S, S) in [-1, 1]."""

    pixels: torch.Tensor


@dataclass(frozen=True)
class CropItem:
    """A crop (3, S, S) in [-1, 1], the image it is of, and the seed of what is random about it."""

    pixels: torch.Tensor
    name: str
    seed: int


class CropDataset:
    """Augmented crops of the images' training regions, which are drawn in proportion to their areas.

    wide_from: the position of the stream from which crops have twice the side, and batches a quarter of them: the same
    cost, but context that reaches further.
    """

    def __init__(self, images: dict[str, np.ndarray], crop: int, wide_from: int):
        self.names, self.regions = list(images), [training_region(image) for image in images.values()]
        self.crop, self.wide_from = crop, wide_from
        areas = np.array([region.shape[0] * region.shape[1] for region in self.regions])
        self.shares, self.count = areas / areas.sum(), max(1, int(areas.sum()) // crop**2)

    def __len__(self) -> int:
        return self.count

    def identity(self) -> dict[str, Any]:
        """Return the images' names and sizes, and the crops' side."""
        sizes = [list(region.shape[:2]) for region in self.regions]
        return {"images": dict(zip(self.names, sizes, strict=True)), "crop": self.crop}

    def __getitem__(self, key: Draw) -> CropItem:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Draw]) -> list[CropItem]:
        """Return a batch's crops, fewer and larger ones late in the stream."""
        if keys[0].position < self.wide_from:
            return [self.draw_crop(key.seed, self.crop) for key in keys]
        return [self.draw_crop(key.seed, 2 * self.crop) for key in keys[: max(1, len(keys) // 4)]]

    def draw_crop(self, seed: int, side: int) -> CropItem:
        """Draw an augmented crop from a seed."""
        rng = np.random.default_rng(seed)
        number = rng.choice(len(self.regions), p=self.shares)
        pixels = recolour(resharpen(random_crop(self.regions[number], side, rng), rng), rng) * 2 - 1
        return CropItem(pixels[0], self.names[number], seed)


def collate_crops(items: Sequence[CropItem]) -> CropBatch:
    """Make a batch of crops of one size."""
    pixels = torch.stack([item.pixels for item in items])
    return CropBatch(pixels, names=[item.name for item in items], seeds=[item.seed for item in items])


def read_image(path: Path) -> np.ndarray:
    """Read a whole image or slide at full resolution, uint8 (H, W, 3).

    Raises MissingError, or InputError for a file that is neither, and for an image that is not RGB.
    """
    if not path.is_file():
        raise MissingError(f"no {path}: run pixcell demo-data first, or give its folder with --source")
    with closing(open_slide(path, mpp=1.0, image_mpp=1.0)) as slide:  # equal, so pixel for pixel, whatever they are
        square = slide.read(0, 0, max(slide.width, slide.height))
        return np.asarray(square.crop((0, 0, slide.width, slide.height)))


def training_region(image: np.ndarray) -> np.ndarray:
    """Return the part of an image that is trained on."""
    return image[: int(image.shape[0] * TRAINING_HEIGHT)]


def held_out_region(image: np.ndarray) -> np.ndarray:
    """Return the part of an image that is held out."""
    return image[int(image.shape[0] * TRAINING_HEIGHT) :]


def tissue_share(image: np.ndarray) -> float:
    """Return the share of pixels that are coloured, as stain is and glass is not."""
    return float((np.ptp(image, axis=-1) > 20).mean())


def tissue_tiles(region: np.ndarray) -> list[torch.Tensor]:
    """Return the grid tiles of a region with enough tissue, each (1, 3, TILE, TILE) in [-1, 1]."""
    corners = [
        (y, x) for y in range(0, region.shape[0] - TILE + 1, TILE) for x in range(0, region.shape[1] - TILE + 1, TILE)
    ]
    tiles = [region[y : y + TILE, x : x + TILE] for y, x in corners]
    return [to_unit(tile) * 2 - 1 for tile in tiles if tissue_share(tile) >= MIN_TISSUE]


def to_unit(image: np.ndarray) -> torch.Tensor:
    """Convert uint8 (H, W, 3) to float (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def random_crop(region: np.ndarray, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Draw one crop in [0, 1], (1, 3, size, size): two in five rescaled by 0.5x to 2x, all flipped and turned."""
    scale = 2 ** rng.uniform(-1, 1) if rng.random() < 0.4 else 1.0
    side = round(size / scale)
    crop = draw_square(region, side, rng)
    for _ in range(7):  # glass is easy: look for tissue, but take what comes in the end
        if tissue_share(crop[::4, ::4]) >= MIN_TISSUE:
            break
        crop = draw_square(region, side, rng)
    crop = np.rot90(crop[:, ::-1] if rng.random() < 0.5 else crop, int(rng.integers(4)))
    pixels = to_unit(crop)
    if side == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def draw_square(region: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one square of a region, (side, side, 3)."""
    y, x = rng.integers(region.shape[0] - side + 1), rng.integers(region.shape[1] - side + 1)
    return region[y : y + side, x : x + side]


def resharpen(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur or sharpen two crops in five, by an unsharp mask of random sign; pixels (B, 3, H, W) in [0, 1]."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(pixels, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
    amount = draw_uniform(rng, len(pixels), 1, -0.8, 0.8) * draw_mask(rng, len(pixels), 0.4)
    return (pixels + amount * (pixels - blurred)).clamp(0, 1)


def recolour(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change stain strength, hue, saturation, white point and brightness of three crops in five; in and out [0, 1]."""
    batch, on = len(pixels), draw_mask(rng, len(pixels), 0.6)
    # A power per colour scales optical densities: other stain strengths and hues, and glass stays white.
    power = torch.exp(on * (0.25 * draw_normal(rng, batch, 1) + 0.15 * draw_normal(rng, batch, 3)))
    pixels = pixels.clamp_min(1e-3) ** power
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = grey + (pixels - grey) * torch.exp(0.3 * on * draw_normal(rng, batch, 1))
    white = 1 - on * draw_uniform(rng, batch, 3, 0, 0.15)
    return (pixels * white + 0.05 * on * draw_normal(rng, batch, 1)).clamp(0, 1)


def draw_mask(rng: np.random.Generator, batch: int, share: float) -> torch.Tensor:
    """Draw which of a batch are changed, (B, 1, 1, 1) of 0 or 1."""
    return torch.from_numpy(rng.random((batch, 1, 1, 1)) < share).float()


def draw_uniform(rng: np.random.Generator, batch: int, channels: int, low: float, high: float) -> torch.Tensor:
    """Draw uniform numbers (B, C, 1, 1)."""
    return torch.from_numpy(rng.uniform(low, high, (batch, channels, 1, 1))).float()


def draw_normal(rng: np.random.Generator, batch: int, channels: int) -> torch.Tensor:
    """Draw normal numbers (B, C, 1, 1)."""
    return torch.from_numpy(rng.standard_normal((batch, channels, 1, 1))).float()
