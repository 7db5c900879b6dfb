"""The latent codec: pixels <-> the latents that the diffusion network sees.

Three spaces, which have these names everywhere in the project:
  pixels            (B, 3, H, W)       RGB in [-1, 1]
  raw latents       (B, 16, H/8, W/8)  as the autoencoder makes them; feature files store their moments
  network latents   (B, 16, H/8, W/8)  (raw - shift) * scale, about zero mean and unit variance

Scale and shift belong to an autoencoder and are read from its folder; they are applied in this module and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion.encoders.vae_files import codec_folder, find_vae_weights, read_vae, read_vae_config
from diffusion.formats import LATENT_CHANNELS, LATENT_FACTOR
from diffusion.utils.errors import InputError
from diffusion.utils.weights import fingerprint_weights

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


@dataclass(frozen=True)
class LatentScale:
    """The affine map between raw and network latents: network = (raw - shift) * scale."""

    scale: float
    shift: float

    def to_network(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the network latents of raw ones."""
        return (raw - self.shift) * self.scale

    def to_raw(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the raw latents of the network's."""
        return latents / self.scale + self.shift

    @classmethod
    def from_folder(cls, path: str | Path) -> LatentScale:
        """Read the scale from the config.json of an AutoencoderKL folder. Raises MissingError, InputError."""
        config = read_vae_config(Path(path))
        return cls(scale=float(config["scaling_factor"]), shift=float(config["shift_factor"] or 0.0))


SD3_SCALE = LatentScale(scale=1.5305, shift=0.0609)


def from_uint8(picture: torch.Tensor) -> torch.Tensor:
    """Return pixels as a codec takes them: 0..255 -> float32 in [-1, 1]."""
    return picture.float() / 127.5 - 1


def check_pixels(pixels: torch.Tensor, codec: LatentCodec) -> torch.Tensor:
    """Return decoded pixels unchanged. Raises InputError for NaN and infinity, which would become black."""
    if not torch.isfinite(pixels).all():
        in_half = next(codec.vae.parameters()).dtype != torch.float32
        cause = "take --precision fp32" if in_half else "its weights or its scaling_factor are bad"
        raise InputError(f"codec {codec.name} makes pixels that are not finite; {cause}")
    return pixels


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Return pixels of an image file: [-1, 1] -> 0..255, rounded, on the CPU."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


class LatentCodec:
    """A frozen diffusers AutoencoderKL with 16 latent channels at an eighth of the resolution.

    Attributes: `scale`, `channels` (16), `factor` (8), `name`, `vae`, `fingerprint` (of its weights file, "" without one).
    """

    channels = LATENT_CHANNELS
    factor = LATENT_FACTOR

    def __init__(self, vae: AutoencoderKL, scale: LatentScale, name: str, fingerprint: str = "") -> None:
        self.vae: Any = vae.eval().requires_grad_(False)
        self.scale = scale
        self.name = name
        self.fingerprint = fingerprint

    @classmethod
    def load(
        cls, name_or_folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> LatentCodec:
        """Load an embedded codec by name, or any diffusers AutoencoderKL folder.

        Raises MissingError where there is no such folder or file, InputError for another latent layout than ours.
        """
        folder = codec_folder(name_or_folder)
        scale = LatentScale.from_folder(folder)
        path = find_vae_weights(folder)
        vae: Any = read_vae(path, read_vae_config(folder), dtype)
        # Channels last makes these convolutions about a third faster on a CPU.
        vae = vae.to(device=device, memory_format=torch.channels_last)
        return cls(vae, scale, str(name_or_folder), fingerprint_weights(path))

    @torch.no_grad()
    def moments(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the posterior mean, then its standard deviation, of raw latents: what a feature file stores.

        pixels (B, 3, H, W) in [-1, 1] -> float32 (B, 32, H/8, W/8).
        """
        posterior = self._posterior(pixels)
        return torch.cat([posterior.mean, posterior.std], dim=1).float()

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return network latents: the posterior's mean, or a sample of it where a generator is given.

        pixels (B, 3, H, W) in [-1, 1] -> (B, 16, H/8, W/8), in the codec's dtype.
        """
        posterior = self._posterior(pixels)
        return self.scale.to_network(posterior.mean if generator is None else posterior.sample(generator))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return pixels in [-1, 1], (B, 3, 8h, 8w), of network latents (B, 16, h, w). Raises InputError."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise InputError(f"latents have shape {tuple(latents.shape)}, expected (B, {self.channels}, h, w)")
        raw = self.scale.to_raw(latents.to(device=self.vae.device, dtype=self.vae.dtype))
        return self.vae.decode(raw).sample.clamp(-1, 1)

    def _posterior(self, pixels: torch.Tensor) -> Any:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise InputError(f"pixels have shape {tuple(pixels.shape)}, expected (B, 3, H, W)")
        if pixels.shape[2] % self.factor or pixels.shape[3] % self.factor:
            sides = f"{pixels.shape[2]}x{pixels.shape[3]}"
            raise InputError(f"pixels are {sides}, expected sides that {self.factor} divides")
        pixels = pixels.to(device=self.vae.device, dtype=self.vae.dtype, memory_format=torch.channels_last)
        return self.vae.encode(pixels).latent_dist


def sd3_vae_config() -> dict[str, Any]:
    """Return the arguments of `AutoencoderKL` for the autoencoder of SD3 and SD3.5 (83.8 M parameters)."""
    return {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": LATENT_CHANNELS,
        "norm_num_groups": 32,
        "mid_block_add_attention": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "sample_size": 1024,
        "scaling_factor": SD3_SCALE.scale,
        "shift_factor": SD3_SCALE.shift,
    }


def build_sd3_vae() -> AutoencoderKL:
    """Build SD3's autoencoder with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(**sd3_vae_config())
