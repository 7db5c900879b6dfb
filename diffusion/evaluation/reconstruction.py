"""How well latent codecs reconstruct patches: in pixels (PSNR, SSIM) and in an encoder's features.

Pictures are compared as they would be saved, in 8 bits, and are decoded from the posterior's mean: what a codec loses,
without the noise of a draw.

Letters: B, P windows, S their side in pixels, k tiles of 256 in a window, D width of the features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from diffusion.data.index.patch_index import PatchIndex
from diffusion.data.sampler import Permutation
from diffusion.data.slides.reader import PlainImage
from diffusion.encoders.embedders import PatchEmbedder, resize
from diffusion.encoders.latents import LatentCodec, check_pixels, from_uint8, to_uint8
from diffusion.evaluation.metrics.pairs import compare_pairs
from diffusion.evaluation.metrics.scores import Value, frechet, mean_of
from diffusion.evaluation.sets.features import Features
from diffusion.evaluation.sets.images import ImageSet
from diffusion.formats import PATCHES_DIR, WINDOW
from diffusion.utils.errors import InputError
from diffusion.utils.seeds import mix_seed
from diffusion.utils.windows import cut_windows

ROUNDING = 1 / 12  # mean squared error of rounding to whole numbers: an original is no better known than that
SSIM_SIDE = 11  # pixels of the Gaussian window
PROBES = 100  # images tried before none of a set counts as usable
SEED = 0  # of the bootstrap and of random pairs: which windows are drawn is all that a user's seed decides
AMPLIFIED = 4  # of the differences that are drawn
LARGEST_SHOWN = 256  # pixels a side
QUALITIES = {"psnr": "PSNR, dB", "ssim": "SSIM", "cosine": "cosine distance", "distance": "feature distance"}
NOTES = (
    "Decoded from the posterior's mean, and compared in 8 bits.",
    "PSNR is that of each window, and 58.9 dB at most: the original itself is rounded.",
    "cosine: 1 - cosine of the features of original and reconstruction. distance: between those features, where 1 is the "
    "distance of two random originals.",
    "frechet is between pairs, so little of it is bias of few windows: not to be compared with distances of samples.",
    "Intervals are of 95 %, by the bootstrap over windows, as if these were independent.",
)


@dataclass(frozen=True)
class Images:
    """Where the originals are: names of files below a folder, looked up one by one."""

    folder: Path
    count: int
    name: Callable[[int], str]

    @classmethod
    def below(cls, folder: Path) -> Images:
        """All images in a folder and those below it. Raises as `ImageSet.open`."""
        files = ImageSet.open(folder).files.values()
        names = [file.relative_to(folder).as_posix() for file in files]
        return cls(folder, len(names), names.__getitem__)

    @classmethod
    def of_index(cls, root: Path, index: PatchIndex) -> Images:
        return cls(root / PATCHES_DIR, len(index), index.name)


class Window(NamedTuple):
    """A square of an image: its file and its top-left pixel."""

    name: str
    left: int
    top: int

    def __str__(self) -> str:
        return f"{self.name} ({self.left}, {self.top})"


@dataclass(frozen=True)
class Windows:
    """Squares of `size` pixels, in the order in which they were drawn. bad: why images were left out, by their names."""

    folder: Path
    size: int
    places: list[Window]
    bad: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def read(self, numbers: Sequence[int]) -> torch.Tensor:
        """The pixels of some windows, uint8 (B, 3, S, S). Raises MissingError or InputError for files that have changed."""
        squares = []
        for name, left, top in (self.places[i] for i in numbers):
            squares.append(np.array(PlainImage(self.folder / name).read(left, top, self.size)))
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)

    def batches(self, batch_size: int) -> Iterator[range]:
        """The numbers of all windows, so many at a time."""
        for first in range(0, len(self), batch_size):
            yield range(first, min(first + batch_size, len(self)))


def draw_windows(images: Images, count: int, size: int, seed: int = 0, strict: bool = False) -> Windows:
    """At most `count` windows at random: one of each image, then, where there are too few images, more of each.

    An image that cannot be read, is not RGB or is smaller than a window is left out, and another one takes its place;
    strict: it is an error. Windows of one image lie side by side from its top-left corner.
    Raises InputError for fewer than two windows, and when none of the first images can be used.
    """
    bad: dict[str, str] = {}
    places = list(islice(_windows_in_turn(images, size, seed, strict, bad), count))
    if len(places) < 2:
        reason = f"; {next(iter(bad.values()))}" if bad else ""
        raise InputError(
            f"{images.folder}: got {len(places)} windows of {size} pixels from {images.count} images, "
            f"expected at least 2{reason}"
        )
    return Windows(images.folder, size, places, bad)


def _windows_in_turn(images: Images, size: int, seed: int, strict: bool, bad: dict[str, str]) -> Iterator[Window]:
    order, left = Permutation(images.count, seed), []
    for i in map(order, range(images.count)):
        name = images.name(i)
        try:
            windows = _windows_of(images.folder / name, name, size, mix_seed(seed, i))
        except ValueError as error:  # an InputError is one, and so is what Pillow says of some damage
            if strict:
                raise InputError(f"{error}; without --strict it would be left out and named") from None
            bad[name] = str(error)
            if len(bad) >= PROBES and not left:
                raise InputError(f"none of the first {PROBES} images can be used: {error}") from None
            continue
        left.append(windows)
        yield windows.pop()
    while any(left):
        for windows in filter(None, left):
            yield windows.pop()


def _windows_of(path: Path, name: str, size: int, seed: int) -> list[Window]:
    """All windows of an image in a random order."""
    image = PlainImage(path)
    columns, rows = image.width // size, image.height // size
    if not columns * rows:
        raise InputError(f"{path} has {image.width} x {image.height} pixels, less than a window of {size}")
    order = np.random.default_rng(seed).permutation(columns * rows).tolist()
    return [Window(name, place % columns * size, place // columns * size) for place in order]


def check_size(size: int, factor: int) -> None:
    """Raises InputError for windows that a codec of so many pixels a latent, or SSIM, cannot take."""
    if size % factor or size < SSIM_SIDE:
        least = -(-SSIM_SIDE // factor) * factor
        raise InputError(f"--size {size}: expected a multiple of {factor} (pixels a latent) of at least {least}")


def psnr(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures, uint8 (S, S, 3), over all channels.

    58.9 dB at most: errors below that of rounding count as that, since an original in 8 bits is known no better. So an
    identical reconstruction has a finite value, and one blank patch does not decide a mean.
    """
    from skimage.metrics import mean_squared_error  # which brings scipy.stats, a second's worth

    error = max(mean_squared_error(original, reconstruction), ROUNDING)
    return float(10 * np.log10(255**2 / error))


def ssim(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """Structural similarity of pictures, uint8 (S, S, 3), as Wang et al. 2004 take it of grey ones: mean over channels.

    Gaussian windows of 11 pixels that lie wholly inside, in float64.
    """
    from skimage.metrics import structural_similarity

    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    return float(structural_similarity(original, reconstruction, channel_axis=2, **settings))


def reconstruct(codec: LatentCodec, originals: torch.Tensor) -> torch.Tensor:
    """Encode and decode pictures, uint8 (B, 3, S, S) -> the same on the CPU, from the posterior's mean.

    Raises InputError when a codec's numbers overflow.
    """
    return to_uint8(check_pixels(codec.decode(codec.encode(from_uint8(originals))), codec))


def embed(pictures: torch.Tensor, embedder: PatchEmbedder, batch_size: int) -> torch.Tensor:
    """Features (B * k, D) of the tiles of pictures, on the CPU."""
    return torch.cat([embedder.embed(part).cpu() for part in tiles(pictures).split(batch_size)])


def tiles(pictures: torch.Tensor) -> torch.Tensor:
    """What an embedder sees of pictures, uint8 (B, 3, S, S) -> (B * k, 3, 256, 256).

    Their whole tiles of 256 pixels, row by row; of smaller pictures an enlarged one (k = 1).
    """
    if pictures.shape[-1] < WINDOW:
        return resize(pictures, WINDOW, WINDOW).to(torch.uint8)
    return cut_windows(pictures, WINDOW)


def embed_originals(windows: Windows, embedder: PatchEmbedder, batch_size: int) -> Features:
    """The features of all windows, (P * k, D)."""
    batches = tqdm(list(windows.batches(batch_size)), desc=f"originals, {embedder.name}", unit="batch", leave=False)
    parts = [embed(windows.read(numbers), embedder, batch_size) for numbers in batches]
    return Features.of(torch.cat(parts), embedder.name)


@dataclass(frozen=True)
class Quality:
    """What was measured of one codec. of_each: a value for every window, (P,), by the names of QUALITIES."""

    codec: str
    of_each: dict[str, np.ndarray]
    frechet: float
    identical: int  # windows without any difference
    latents_per_pixel: float
    seconds: float  # for a window to be encoded and decoded: the median over batches, of which the first may be slow
    parameters: int

    @cached_property
    def means(self) -> dict[str, Value]:
        """Over windows, with their intervals."""
        return {name: mean_of(values, SEED) for name, values in self.of_each.items()}

    def against(self, other: Quality) -> dict[str, Value]:
        """Means of the differences to another codec, window by window.

        Their intervals are far narrower than those of the means: that some windows are hard is common to both codecs.
        """
        return {name: mean_of(values - other.of_each[name], SEED) for name, values in self.of_each.items()}

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        means = {name: value._asdict() for name, value in self.means.items()}
        rest = ("frechet", "identical", "latents_per_pixel", "seconds", "parameters")
        return means | {name: getattr(self, name) for name in rest}

    def row(self) -> dict[str, Any]:
        """As a table has it."""
        row: dict[str, Any] = {"codec": self.codec, "windows": len(self.of_each["psnr"])}
        for name, value in self.record().items():
            row |= {f"{name}_{part}": x for part, x in value.items()} if isinstance(value, dict) else {name: value}
        return {name.removesuffix("_value"): value for name, value in row.items()}


def measure(
    name: str,
    codec: LatentCodec,
    windows: Windows,
    originals: Features,
    embedder: PatchEmbedder,
    batch_size: int = 8,
) -> Quality:
    """Reconstruct all windows and compare. originals: their features, from the same embedder.

    Raises InputError as `reconstruct` and `Windows.read`.
    """
    psnrs, ssims, features, seconds, identical = [], [], [], [], 0
    for numbers in tqdm(list(windows.batches(batch_size)), desc=name, unit="batch", leave=False):
        pictures = windows.read(numbers)
        begun = time.perf_counter()
        made = reconstruct(codec, pictures)  # is on the CPU when it returns, so that no device is still at work
        seconds.append((time.perf_counter() - begun) / len(numbers))
        features.append(embed(made, embedder, batch_size))
        for pair in zip(pictures, made, strict=True):
            original, reconstruction = (picture.permute(1, 2, 0).numpy() for picture in pair)
            psnrs.append(psnr(original, reconstruction))
            ssims.append(ssim(original, reconstruction))
            identical += np.array_equal(original, reconstruction)
    reconstructions = Features.of(torch.cat(features), embedder.name)
    pairs = compare_pairs(originals, reconstructions, SEED)  # of tiles, whose means are their windows' values
    cosine, distance = (of.reshape(len(windows), -1).mean(1) for of in (1 - pairs.similarity, pairs.distance))
    return Quality(
        codec=name,
        of_each={"psnr": np.array(psnrs), "ssim": np.array(ssims), "cosine": cosine, "distance": distance},
        frechet=frechet(originals, reconstructions).value,
        identical=identical,
        latents_per_pixel=codec.channels / codec.factor**2,
        seconds=float(np.median(seconds)),
        parameters=sum(weight.numel() for weight in codec.vae.parameters()),
    )


def examples(values: np.ndarray, count: int) -> dict[int, str]:
    """Numbers of the best, middle and worst windows, up to `count` of each, and which of these they are."""
    order = np.argsort(-values, kind="stable").tolist()
    count = min(count, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    chosen = {"best": order[:count], "median": order[middle : middle + count], "worst": order[len(order) - count :]}
    kinds: dict[int, str] = {}
    for kind, numbers in chosen.items():
        for number in numbers:
            kinds.setdefault(number, kind)  # two windows have no third in their middle
    return kinds


def sheet_rows(
    windows: Windows, kinds: Mapping[int, str], made: Mapping[str, torch.Tensor], qualities: Sequence[Quality]
) -> list[list[tuple[str, torch.Tensor]]]:
    """A row a window: the original, what each codec makes of it, and the amplified differences; each with its label.

    kinds: what to say of each of some windows, by their numbers. made: of these by each codec, uint8 (B, 3, S, S).
    """
    rows, originals = [], windows.read(list(kinds))
    for i, (number, kind) in enumerate(kinds.items()):
        name, left, top = windows.places[number]
        row = [(f"{Path(name).with_suffix('')} ({left}, {top}): {kind}", shown(originals[i]))]
        for quality in qualities:
            values = f"{quality.of_each['psnr'][number]:.1f} dB, SSIM {quality.of_each['ssim'][number]:.3f}"
            row.append((f"{quality.codec}: {values}", shown(made[quality.codec][i])))
        for quality in qualities:
            label = f"{quality.codec}: difference x {AMPLIFIED}"
            row.append((label, shown(amplified(originals[i], made[quality.codec][i]))))
        rows.append(row)
    return rows


def amplified(original: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """The difference of pictures, uint8 (3, S, S), AMPLIFIED times, about grey: lighter is where a codec is."""
    difference = reconstruction.int() - original.int()
    return (128 + AMPLIFIED * difference).clamp(0, 255).to(torch.uint8)


def shown(picture: torch.Tensor) -> torch.Tensor:
    """The middle of a large picture, pixel by pixel, for what a codec loses is as small; a small one in large pixels."""
    side = picture.shape[-1]
    if side > LARGEST_SHOWN:
        first = (side - LARGEST_SHOWN) // 2
        return picture[:, first : first + LARGEST_SHOWN, first : first + LARGEST_SHOWN]
    return F.interpolate(picture[None], scale_factor=LARGEST_SHOWN // side, mode="nearest")[0]
