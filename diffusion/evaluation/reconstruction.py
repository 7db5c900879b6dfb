"""Reconstruction by latent codecs, measured in pixels (PSNR, SSIM) and in the features of an encoder.

Pictures are compared as they would be saved, in 8 bits, and are decoded from the posterior's mean: what a codec loses,
without the noise of a draw.

Letters: B, P windows, S their side in pixels, k tiles of 256 in a window, D width of the features.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from diffusion.encoders.embedders import PatchEmbedder, resize
from diffusion.encoders.latents import LatentCodec, check_pixels, from_uint8, to_uint8
from diffusion.evaluation.metrics.intervals import Value, mean_value
from diffusion.evaluation.metrics.pairs import compare_pairs
from diffusion.evaluation.metrics.pixels import SSIM_SIDE, psnr, ssim
from diffusion.evaluation.metrics.scores import estimate_fid
from diffusion.evaluation.sets.features import Features
from diffusion.evaluation.sets.random_windows import RandomWindows
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError
from diffusion.utils.windows import cut_windows

SEED = 0  # of the bootstrap and of random pairs; the user's seed draws the windows alone
QUALITY_LABELS = {"psnr": "PSNR, dB", "ssim": "SSIM", "cosine": "cosine distance", "distance": "feature distance"}
NOTES = (
    "Decoded from the posterior's mean, and compared in 8 bits.",
    "PSNR is that of each window, and 58.9 dB at most: the original itself is rounded.",
    "cosine: 1 - cosine of the features of original and reconstruction. distance: between those features, where 1 is the "
    "distance of two random originals.",
    "frechet is between pairs, so little of it is bias of few windows: not to be compared with distances of samples.",
    "Intervals are of 95 %, by the bootstrap over windows, as if these were independent.",
)


def check_window_size(size: int, factor: int) -> None:
    """Raise InputError for windows that SSIM, or a codec of `factor` pixels a latent, cannot take."""
    if size % factor or size < SSIM_SIDE:
        least = -(-SSIM_SIDE // factor) * factor
        raise InputError(f"--size {size}: expected a multiple of {factor} (pixels a latent) of at least {least}")


def reconstruct(codec: LatentCodec, originals: torch.Tensor) -> torch.Tensor:
    """Encode pictures, uint8 (B, 3, S, S), and decode the posterior's mean, to the same type and shape on the CPU.

    Raises InputError when a codec's numbers overflow.
    """
    return to_uint8(check_pixels(codec.decode(codec.encode(from_uint8(originals))), codec))


def embed_tiles(pictures: torch.Tensor, embedder: PatchEmbedder, batch_size: int) -> torch.Tensor:
    """Return the features (B * k, D) of the tiles of pictures, on the CPU."""
    return torch.cat([embedder.embed(part).cpu() for part in cut_tiles(pictures).split(batch_size)])


def cut_tiles(pictures: torch.Tensor) -> torch.Tensor:
    """Cut pictures, uint8 (B, 3, S, S), to the tiles that an embedder takes, (B * k, 3, 256, 256).

    These are the complete tiles of 256 pixels, row by row; smaller pictures are enlarged (k = 1).
    """
    if pictures.shape[-1] < WINDOW:
        return resize(pictures, WINDOW, WINDOW).to(torch.uint8)
    return cut_windows(pictures, WINDOW)


def embed_originals(windows: RandomWindows, embedder: PatchEmbedder, batch_size: int) -> Features:
    """Return the features of all windows, (P * k, D)."""
    batches = tqdm(list(windows.batches(batch_size)), desc=f"originals, {embedder.name}", unit="batch", leave=False)
    parts = [embed_tiles(windows.read(numbers), embedder, batch_size) for numbers in batches]
    return Features.from_tensor(torch.cat(parts), embedder.name)


@dataclass(frozen=True)
class CodecQuality:
    """What was measured of one codec. per_window: a value for every window, (P,), by the names of QUALITIES."""

    codec: str
    per_window: dict[str, np.ndarray]
    frechet: float
    identical: int  # windows without any difference
    latents_per_pixel: float
    seconds: float  # for a window to be encoded and decoded: the median over batches, of which the first may be slow
    parameters: int

    @cached_property
    def means(self) -> dict[str, Value]:
        """Return the means over windows, with their intervals."""
        return {name: mean_value(values, SEED) for name, values in self.per_window.items()}

    def difference_to(self, other: CodecQuality) -> dict[str, Value]:
        """Return the means of the differences to another codec, window by window.

        Their intervals are far narrower than those of the means, since some windows are hard for both codecs.
        """
        return {name: mean_value(values - other.per_window[name], SEED) for name, values in self.per_window.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements for JSON."""
        means = {name: value._asdict() for name, value in self.means.items()}
        rest = ("frechet", "identical", "latents_per_pixel", "seconds", "parameters")
        return means | {name: getattr(self, name) for name in rest}

    def to_row(self) -> dict[str, Any]:
        """Return the measurements for a row of a table."""
        row: dict[str, Any] = {"codec": self.codec, "windows": len(self.per_window["psnr"])}
        for name, value in self.to_dict().items():
            row |= {f"{name}_{part}": x for part, x in value.items()} if isinstance(value, dict) else {name: value}
        return {name.removesuffix("_value"): value for name, value in row.items()}


def measure_codec(
    name: str,
    codec: LatentCodec,
    windows: RandomWindows,
    originals: Features,
    embedder: PatchEmbedder,
    batch_size: int = 8,
) -> CodecQuality:
    """Reconstruct all windows and compare them with their originals, whose features come from the same embedder.

    Raises InputError as `reconstruct` and `RandomWindows.read`.
    """
    psnrs, ssims, features, seconds, identical = [], [], [], [], 0
    for numbers in tqdm(list(windows.batches(batch_size)), desc=name, unit="batch", leave=False):
        pictures = windows.read(numbers)
        started = time.perf_counter()
        reconstructed = reconstruct(codec, pictures)  # on the CPU, so that no device is still at work
        seconds.append((time.perf_counter() - started) / len(numbers))
        features.append(embed_tiles(reconstructed, embedder, batch_size))
        for pair in zip(pictures, reconstructed, strict=True):
            original, reconstruction = (picture.permute(1, 2, 0).numpy() for picture in pair)
            psnrs.append(psnr(original, reconstruction))
            ssims.append(ssim(original, reconstruction))
            identical += np.array_equal(original, reconstruction)
    reconstructions = Features.from_tensor(torch.cat(features), embedder.name)
    pairs = compare_pairs(originals, reconstructions, SEED)  # of tiles; a window's value is the mean of its tiles
    assert pairs is not None, "two windows or more have two tiles or more"
    cosine, distance = (values.reshape(len(windows), -1).mean(1) for values in (1 - pairs.similarity, pairs.distance))
    return CodecQuality(
        codec=name,
        per_window={"psnr": np.array(psnrs), "ssim": np.array(ssims), "cosine": cosine, "distance": distance},
        frechet=estimate_fid(originals, reconstructions).value,
        identical=identical,
        latents_per_pixel=codec.channels / codec.factor**2,
        seconds=float(np.median(seconds)),
        parameters=sum(weight.numel() for weight in codec.vae.parameters()),
    )
