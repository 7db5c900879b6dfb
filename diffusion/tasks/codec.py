"""The small latent codec of asset/tiny_vae: 16 channels at an eighth of the resolution, an hour on one core.

An AutoencoderKL learns from the upper three quarters of each demo image and is scored on the bottom quarters, which no
training crop touches. Afterwards an affine map of the latents is folded into the weights: the principal
components of the training tissue, all 16 together with zero mean and unit variance (see change_units).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from diffusion.encoders.latents import LatentCodec
from diffusion.encoders.vae_files import load_vae
from diffusion.optim.build import Muon, others
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.hardware import has_bf16

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

IMAGES = ("cmu_small_region.svs", "hgsc_nest.jpg", "hgsc_stromal_he.jpg")
TRAINING_HEIGHT = 0.75  # of each image's height, from the top; the rest is held out
TILE = 256  # px, of scoring and of the final statistics
MIN_TISSUE = 0.25  # share of tissue in a tile that counts
TILES_OF_A_REGION = 8  # of each image, for the latents' statistics

LEARNING_RATE = 0.025  # of Muon; the spectral norm of one update of a convolution
WARMUP_STEPS = 50
WIDE_CROPS_FROM = 0.75  # of all steps
# Weight of the KL divergence (nats per latent position) against the mean squared error of pixels in [-1, 1]. The best
# posterior of a linear codec then costs 2 * KL_WEIGHT in [0, 1] pixels, a twenty-fifth of the error at 30 dB.
KL_WEIGHT = 2e-5
INITIAL_STD = 0.05  # of the posterior
EMA_DECAY = 0.998
MAX_GRAD_NORM = 1.0


def train_codec(
    source: Path,
    out: Path,
    steps: int,
    batch: int,
    crop: int,
    seed: int,
    device: torch.device,
    init: Path | None = None,
) -> Iterator[str]:
    """Train on the images of `source` and write the codec's folder; says at the end how well it does on each image.

    batch, crop: crops a step, and their side in pixels; init: a folder of such weights to go on from.
    Raises MissingError for absent images, InputError for a crop that does not fit the codec.
    """
    if crop % LatentCodec.factor:
        raise InputError(f"--crop is {crop}, expected a multiple of {LatentCodec.factor}")
    torch.manual_seed(seed)
    images = [read_image(source / name) for name in IMAGES]
    regions = [training_region(image) for image in images]

    crops = training_crops(regions, steps, batch, crop, seed)
    start = build_vae()
    if init:
        start.load_state_dict(load_vae(init, torch.float32).state_dict())
    vae = train(start.to(device, memory_format=torch.channels_last), crops, steps)
    change_units(vae, regions)
    save(vae, out)

    codec = LatentCodec.load(out, device)
    for name, image in zip(IMAGES, images, strict=True):
        clean, noisy = held_out_psnr(codec, image)
        yield f"{name}: held-out PSNR {clean:.2f} dB; with noise of std 0.05 on the latents {noisy:.2f} dB"


# ---------------------------------------------------------------------------------------------------------------------
# Images and crops


def read_image(path: Path) -> np.ndarray:
    """A whole image or slide at full resolution, uint8 (H, W, 3)."""
    if not path.is_file():
        raise MissingError(f"no {path}: run tools/fetch_demo_data.py first, or give its folder with --source")
    if path.suffix != ".svs":
        return np.asarray(Image.open(path).convert("RGB"))
    import openslide

    with openslide.OpenSlide(str(path)) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def training_region(image: np.ndarray) -> np.ndarray:
    return image[: int(image.shape[0] * TRAINING_HEIGHT)]


def held_out_region(image: np.ndarray) -> np.ndarray:
    return image[int(image.shape[0] * TRAINING_HEIGHT) :]


def tissue_share(image: np.ndarray) -> float:
    """Share of pixels that are coloured, as stain is and glass is not."""
    return float((np.ptp(image, axis=-1) > 20).mean())


def tissue_tiles(region: np.ndarray) -> list[torch.Tensor]:
    """The grid tiles of a region with enough tissue, each (1, 3, TILE, TILE) in [-1, 1]."""
    corners = [
        (y, x) for y in range(0, region.shape[0] - TILE + 1, TILE) for x in range(0, region.shape[1] - TILE + 1, TILE)
    ]
    tiles = [region[y : y + TILE, x : x + TILE] for y, x in corners]
    return [to_unit(tile) * 2 - 1 for tile in tiles if tissue_share(tile) >= MIN_TISSUE]


def to_unit(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) -> float (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


def training_crops(regions: list[np.ndarray], steps: int, batch: int, crop: int, seed: int) -> Iterator[torch.Tensor]:
    """One augmented batch per step, (batch, 3, crop, crop) in [-1, 1]; a region is drawn in proportion to its area.

    The last steps have a quarter of the crops at twice the side: the same cost, but context that reaches further.
    """
    rng = np.random.default_rng(seed)
    areas = np.array([region.shape[0] * region.shape[1] for region in regions])
    for step in range(steps):
        wide = step >= WIDE_CROPS_FROM * steps
        size, count = (2 * crop, max(1, batch // 4)) if wide else (crop, batch)
        drawn = rng.choice(len(regions), size=count, p=areas / areas.sum())
        crops = [random_crop(regions[index], size, rng) for index in drawn]
        yield recolour(resharpen(torch.cat(crops), rng), rng) * 2 - 1


def random_crop(region: np.ndarray, size: int, rng: np.random.Generator) -> torch.Tensor:
    """One crop in [0, 1], (1, 3, size, size): two in five rescaled by 0.5x to 2x, all flipped and turned."""
    scale = 2 ** rng.uniform(-1, 1) if rng.random() < 0.4 else 1.0
    side = round(size / scale)
    for _ in range(8):  # glass is easy: look for tissue, but take what comes in the end
        y, x = rng.integers(region.shape[0] - side + 1), rng.integers(region.shape[1] - side + 1)
        crop = region[y : y + side, x : x + side]
        if tissue_share(crop[::4, ::4]) >= MIN_TISSUE:
            break
    crop = np.rot90(crop[:, ::-1] if rng.random() < 0.5 else crop, rng.integers(4))
    pixels = to_unit(crop)
    if side == size:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)


def resharpen(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur or sharpen two crops in five, by an unsharp mask of random sign; pixels (B, 3, H, W) in [0, 1]."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps).expand(3, 1, 5, 5)
    blurred = F.conv2d(F.pad(pixels, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
    amount = uniform(rng, len(pixels), 1, -0.8, 0.8) * chosen(rng, len(pixels), 0.4)
    return (pixels + amount * (pixels - blurred)).clamp(0, 1)


def recolour(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Change stain strength, hue, saturation, white point and brightness of three crops in five; in and out [0, 1]."""
    batch, on = len(pixels), chosen(rng, len(pixels), 0.6)
    # A power per colour scales optical densities: other stain strengths and hues, and glass stays white.
    power = torch.exp(on * (0.25 * normal(rng, batch, 1) + 0.15 * normal(rng, batch, 3)))
    pixels = pixels.clamp_min(1e-3) ** power
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = grey + (pixels - grey) * torch.exp(0.3 * on * normal(rng, batch, 1))
    white = 1 - on * uniform(rng, batch, 3, 0, 0.15)
    return (pixels * white + 0.05 * on * normal(rng, batch, 1)).clamp(0, 1)


def chosen(rng: np.random.Generator, batch: int, share: float) -> torch.Tensor:
    return torch.from_numpy(rng.random((batch, 1, 1, 1)) < share).float()


def uniform(rng: np.random.Generator, batch: int, channels: int, low: float, high: float) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(low, high, (batch, channels, 1, 1))).float()


def normal(rng: np.random.Generator, batch: int, channels: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal((batch, channels, 1, 1))).float()


# ---------------------------------------------------------------------------------------------------------------------
# Model and optimization


def build_vae() -> AutoencoderKL:
    """The untrained network, whose posterior already is as narrow as it will be: with std 1 it learns little at first."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        # Few channels at full resolution, where the time goes; many at an eighth, where the weights go.
        block_out_channels=(16, 32, 96, 112),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LatentCodec.channels,
        # One group: the statistics of all channels together depend least on what a picture shows and how large it is.
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=TILE,
    )
    nn.init.constant_(vae.encoder.conv_out.bias[LatentCodec.channels :], 2 * math.log(INITIAL_STD))
    return vae


def train(vae: AutoencoderKL, crops: Iterator[torch.Tensor], steps: int) -> AutoencoderKL:
    """Minimise pixel error plus a small KL divergence; returns the moving average of the weights, in float32."""
    vae.eval()  # there is no dropout; diffusers' train mode only adds copies
    device = vae.device
    optimizer = build_optimizer(vae)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    progress = tqdm(crops, total=steps, desc="training", unit="step", mininterval=5)
    for pixels in progress:
        pixels = pixels.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16(device)):
            posterior = vae.encode(pixels).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error = F.mse_loss(decoded.float(), pixels)
        loss = error + KL_WEIGHT * kl_per_position(posterior.mean.float(), posterior.logvar.float())

        vae.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        average.update_parameters(vae)
        progress.set_postfix(psnr=f"{decibels(error.item() / 4):.2f}", refresh=False)
    return average.module


def kl_per_position(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL divergence to the unit normal in nats, summed over channels, averaged over positions; inputs (B, 16, h, w)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()


def lr_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / steps))


def decibels(mean_squared_error: float) -> float:
    """PSNR for a peak of 1."""
    return -10 * math.log10(mean_squared_error)


def build_optimizer(vae: AutoencoderKL) -> Muon:
    """Muon for the convolutions between feature maps, AdamW for all else."""
    ends = {vae.encoder.conv_in.weight, vae.decoder.conv_out.weight}
    matrices = [weight for weight in vae.parameters() if weight.ndim == 4 and weight not in ends]
    return Muon(matrices, others(vae, matrices), LEARNING_RATE)


# ---------------------------------------------------------------------------------------------------------------------
# After training


@torch.no_grad()
def change_units(vae: AutoencoderKL, regions: list[np.ndarray]) -> None:
    """Fold a linear map of the latents into the weights: the channels become principal components of the pixels.

    They are those of the training tissue, the strongest (brightness) first. A channel's standard deviation is the square
    root of its effect on pixels: a diffusion model learns first what is seen most, and the noise that leaves brightness
    legible does not drown the detail, as it would at the full ratio of 26 to 1 between first and last channel.
    All 16 together get mean 0 and variance 1, so that the scale and shift of config.json are 1 and 0. The mean is
    exact but for the decoder's zero padding at a picture's edge; the posterior's variance becomes one of each channel.
    """
    tiles = [tile.to(vae.device) for region in regions for tile in tissue_tiles(region)[:TILES_OF_A_REGION]]
    posteriors = [vae.encode(tile).latent_dist for tile in tiles]
    channels = torch.cat([each.mean for each in posteriors]).transpose(0, 1).flatten(1).double()  # (16, positions)
    variance = torch.cat([each.var for each in posteriors]).double().mean(dim=(0, 2, 3))
    mean, covariance = channels.mean(dim=1), torch.cov(channels)
    to_pixels = square_root(torch.stack([sensitivity(vae, each.mean) for each in posteriors]).mean(dim=0))
    spectrum, axes = torch.linalg.eigh(to_pixels @ covariance @ to_pixels)
    spectrum, axes = spectrum.flip(0), axes.flip(1)  # strongest first
    variances = spectrum.sqrt() / spectrum.sqrt().mean()
    forward = (variances / spectrum).sqrt()[:, None] * axes.T @ to_pixels
    backward = torch.linalg.inv(forward)

    head, stem, count = vae.encoder.conv_out, vae.decoder.conv_in, LatentCodec.channels
    stem.bias += torch.einsum("oihw,i->o", stem.weight.double(), mean).float()
    stem.weight.copy_(torch.einsum("oihw,ij->ojhw", stem.weight.double(), backward))
    head.weight[:count] = torch.einsum("ij,jchw->ichw", forward, head.weight[:count].double()).float()
    head.bias[:count] = (forward @ (head.bias[:count].double() - mean)).float()
    head.weight[count:] = 0  # a sum of independent channels keeps no variance of its own for every position
    head.bias[count:] = (forward.square() @ variance).log().float()
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)


def sensitivity(vae: AutoencoderKL, latents: torch.Tensor, step: float = 0.05, spacing: int = 4) -> torch.Tensor:
    """How pixels answer to the channels at one position: the Gram matrix (16, 16) of the decoder's derivatives.

    Latents (1, 16, h, w) are moved at every fourth position at once, far enough apart to answer singly.
    """
    decoded, answers = vae.decode(latents).sample, []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel, 1::spacing, 1::spacing] += step
        answers.append((vae.decode(moved).sample - decoded).flatten().double() / step)
    positions = latents[0, 0, 1::spacing, 1::spacing].numel()
    return torch.stack(answers) @ torch.stack(answers).T / positions


def square_root(matrix: torch.Tensor) -> torch.Tensor:
    """Of a symmetric, positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T


def save(vae: AutoencoderKL, folder: Path) -> None:
    """Write the diffusers folder in float16, under another name until it is whole."""
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    vae.half().save_pretrained(part, safe_serialization=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def held_out_psnr(codec: LatentCodec, image: np.ndarray, noise: float = 0.05) -> tuple[float, float]:
    """Mean PSNR in dB over the held-out tissue tiles: as it is, and with Gaussian noise on the network latents."""
    generator = torch.Generator().manual_seed(0)
    clean, noisy = [], []
    for tile in tissue_tiles(held_out_region(image)):
        latents = codec.encode(tile)
        jitter = noise * torch.randn(latents.shape, generator=generator).to(latents)
        clean.append(tile_psnr(codec.decode(latents).cpu(), tile))
        noisy.append(tile_psnr(codec.decode(latents + jitter).cpu(), tile))
    return float(np.mean(clean)), float(np.mean(noisy))


def tile_psnr(pixels: torch.Tensor, reference: torch.Tensor) -> float:
    """Of pixels in [-1, 1], where the peak is 2."""
    return decibels((pixels - reference).square().mean().item() / 4)
