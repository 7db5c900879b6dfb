"""The codec task: train a small latent codec on images, as an autoencoder with a weak KL divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from diffusion.config.settings import OptimizerConfig, Reports, ScheduleConfig, TrainingConfig
from diffusion.encoders.latents import LatentCodec
from diffusion.encoders.vae_files import load_vae
from diffusion.formats import LAST_WEIGHTS, LATENT_CHANNELS, LATENT_FACTOR
from diffusion.tasks.codec.images import (
    CropBatch,
    CropDataset,
    CropItem,
    collate_crops,
    held_out_region,
    read_image,
    tissue_tiles,
    training_region,
)
from diffusion.tasks.codec.network import CodecNetwork, build_vae, save_codec
from diffusion.tasks.codec.units import change_units
from diffusion.training.task import Task
from diffusion.training.trainer import train
from diffusion.utils.errors import InputError
from diffusion.utils.seeds import mix_seed
from diffusion.utils.values import Count, Name, Names, NotNegative
from diffusion.utils.weights import read_torch_file

DEMO_IMAGES = ("cmu_small_region.svs", "hgsc_nest.jpg", "hgsc_stromal_he.jpg")
WIDE_CROPS_FROM = 0.75  # of all steps


@dataclass(frozen=True)
class CodecConfig(TrainingConfig):
    """Settings of the codec task; the defaults are those of asset/tiny_vae, an hour on one core."""

    task: Name = "codec"
    source: Name = "data/demo/source"
    """Folder of the images."""
    images: Names = DEMO_IMAGES
    """File names of images and slides, of which the upper three quarters are trained on and the rest is held out."""
    crop: Count = 64
    """Side of a crop in pixels; a multiple of 8."""
    kl_weight: NotNegative = 2e-5
    """Weight of the KL divergence (nats per latent position) against the mean squared error of pixels in [-1, 1]. The
    best posterior of a linear codec then costs 2 * kl_weight in [0, 1] pixels, a twenty-fifth of the error at 30 dB."""

    # lr: the spectral norm of one update of a convolution
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(type="Muon", lr=0.025))
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    lr_schedule_args: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(num_warmup_steps=50))
    train_batch_size: Count = 8
    max_steps: int | None = 7500
    ema_rate: float = 0.998
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    num_workers: int = 0
    report_to: Reports = ("none",)

    def check(self) -> None:
        """Raise InputError for a crop that does not fit the codec, and for a run of no known length."""
        super().check()
        if self.crop % LATENT_FACTOR:
            raise InputError(f"crop {self.crop}: expected a multiple of {LATENT_FACTOR}")
        if self.max_steps is None:
            raise InputError("max_steps None: the codec's crops grow late in a run, whose length must be known")


class Codec(Task[CodecConfig]):
    """Minimise the error of decoded pixels plus a small KL divergence of the posterior to the unit normal."""

    name = "codec"
    losses = ("loss", "error", "kl")

    def build_dataset(self) -> CropDataset:
        """Read the images. Raises MissingError for one that is not there."""
        from accelerate import PartialState

        config = self.config
        steps = int(WIDE_CROPS_FROM * (config.max_steps or 0))
        wide_from = steps * config.train_batch_size * config.gradient_accumulation_steps * PartialState().num_processes
        return CropDataset(self.read_images(), config.crop, wide_from)

    def read_images(self) -> dict[str, np.ndarray]:
        """Read the images by their names, uint8 (H, W, 3) each."""
        return {name: read_image(Path(self.config.source) / name) for name in self.config.images}

    def collate(self, items: Sequence[CropItem]) -> CropBatch:
        """Make a batch of crops."""
        return collate_crops(items)

    def build_network(self, load_from: str | None) -> tuple[CodecNetwork, str]:
        """Build the codec: new, or from a folder of such weights."""
        vae = build_vae()
        if load_from is None:
            return CodecNetwork(vae), f"seed {self.config.seed}"
        vae.load_state_dict(load_vae(Path(load_from), torch.float32).state_dict())
        return CodecNetwork(vae), load_from

    def draw_randomness(self, batch: CropBatch) -> torch.Tensor:
        """Draw the posterior's noise (B, 16, h, w)."""
        side, device = batch.pixels.shape[-1] // LATENT_FACTOR, batch.pixels.device
        noise, generator = torch.empty(len(batch), LATENT_CHANNELS, side, side, device=device), torch.Generator(device)
        for seed, part in zip(batch.seeds, noise, strict=True):
            torch.randn(part.shape, generator=generator.manual_seed(mix_seed(seed or 0, 1)), device=device, out=part)
        return noise

    def compute_losses(self, network: nn.Module, batch: CropBatch, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the error of pixels in [-1, 1] and the divergence in nats per position, and their sum, (B,) each."""
        pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
        decoded, mean, logvar = network(pixels, noise)
        error = (decoded.float() - pixels).square().mean(dim=(1, 2, 3))
        kl = kl_per_position(mean.float(), logvar.float())
        return {"loss": error + self.config.kl_weight * kl, "error": error, "kl": kl}

    def select_matrices(self, network: CodecNetwork) -> list[nn.Parameter]:
        """Return the convolutions between feature maps."""
        vae = network.vae
        ends = {id(vae.encoder.conv_in.weight), id(vae.decoder.conv_out.weight)}
        return [weight for weight in vae.parameters() if weight.ndim == 4 and id(weight) not in ends]

    @property
    def description(self) -> tuple[str, str, str]:
        """Return the kind of network, the size of the samples, and the objective."""
        return "AutoencoderKL", f"crops of {self.config.crop} pixels", "pixel error and KL divergence"


def train_codec(
    config: CodecConfig,
    work_dir: Path,
    out: Path,
    device: torch.device,
    fresh: bool = False,
    accept_changes: bool = False,
) -> Iterator[str]:
    """Train the codec in a work dir, write its diffusers folder, and yield how well it does on each image, in words.

    fresh, accept_changes: as of `training.trainer.train`.
    Yields nothing when a signal stopped the training, which the same call resumes. Raises MissingError for absent images.
    """
    task = Codec(config)
    if not train(config, task, work_dir, device.type == "cpu", fresh, accept_changes):
        return
    images = task.read_images()
    network, _ = task.build_network(None)
    network.load_state_dict(read_torch_file(work_dir / LAST_WEIGHTS)["state_dict"])
    network.to(device)
    change_units(network.vae, [training_region(image) for image in images.values()])
    save_codec(network.vae, out)
    codec = LatentCodec.load(out, device)
    for name, image in images.items():
        clean, noisy = held_out_psnr(codec, image)
        yield f"{name}: held-out PSNR {clean:.2f} dB; with noise of std 0.05 on the latents {noisy:.2f} dB"


def kl_per_position(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Compute the KL divergence to the unit normal in nats, summed over channels, averaged over positions.

    mean, logvar (B, 16, h, w) -> (B,).
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean(dim=(1, 2))


def held_out_psnr(codec: LatentCodec, image: np.ndarray, noise: float = 0.05) -> tuple[float, float]:
    """Compute the mean PSNR in dB over the held-out tissue tiles: as they are, and with noise on the network latents."""
    generator = torch.Generator().manual_seed(0)
    clean, noisy = [], []
    for tile in tissue_tiles(held_out_region(image)):
        latents = codec.encode(tile)
        jitter = noise * torch.randn(latents.shape, generator=generator).to(latents)
        clean.append(tile_psnr(codec.decode(latents).cpu(), tile))
        noisy.append(tile_psnr(codec.decode(latents + jitter).cpu(), tile))
    return float(np.mean(clean)), float(np.mean(noisy))


def tile_psnr(pixels: torch.Tensor, reference: torch.Tensor) -> float:
    """Compute the PSNR in dB of pixels in [-1, 1], where the peak is 2."""
    return -10 * math.log10((pixels - reference).square().mean().item() / 4)
