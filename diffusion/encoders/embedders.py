"""Patch embedders: networks that map a window of tissue, 256 x 256 pixels, to a vector.

An embedder is a network with its transform and precision. Networks are in `networks`, their files in `embedder_files`.
Letters: B batch, D width of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from diffusion.encoders.embedder_files import download_weights, load_embedder_weights, resolve_embedder
from diffusion.encoders.networks import DEFAULT_VIEW, View
from diffusion.formats import WINDOW
from diffusion.utils.errors import InputError
from diffusion.utils.weights import fingerprint_weights

CPU_BATCH = 16  # more fall out of a CPU's caches: 27 ms an image at 32, 17 ms at 16 (MobileNetV2, two cores)


@dataclass(frozen=True)
class PatchEmbedder:
    """A network in eval mode with the transform that it expects."""

    model: nn.Module
    name: str
    width: int  # D
    view: View = DEFAULT_VIEW
    dtype: torch.dtype = torch.float32  # of the network; embeddings come out in float32
    fingerprint: str = ""  # of the weights file

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        root: Path = Path("."),
    ) -> PatchEmbedder:
        """Load a network by its name in EMBEDDERS, weights file or folder, NAME=PATH, timm/NAME=PATH or torchvision/NAME=PATH.

        root: folder of the data, below which weights are looked for.
        Raises InputError for an unknown network and for weights that are not its own, MissingError for absent ones.
        """
        spec, path = resolve_embedder(name_or_path, root)
        download_weights(spec, path)
        with torch.device("meta"):  # known networks need no memory or random numbers: every weight comes from the file
            model = spec.build()
        load_embedder_weights(model, spec, path)
        # channels last nearly halves the time of these convolutions on a CPU
        model.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
        return cls(
            model.eval().requires_grad_(False), spec.name, spec.width, spec.view, dtype, fingerprint_weights(path)
        )

    @property
    def device(self) -> torch.device:
        """Return the device of the network."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def embed(self, windows: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, D), float32 on the embedder's device, of uint8 RGB windows (B, 3, 256, 256).

        Raises InputError for windows of another type or shape.
        """
        expected = (3, WINDOW, WINDOW)
        if windows.dtype != torch.uint8 or windows.ndim != 4 or windows.shape[1:] != expected:
            raise InputError(
                f"got windows of {windows.dtype} {tuple(windows.shape)}, expected uint8 (B, 3, {WINDOW}, {WINDOW})"
            )
        at_once = CPU_BATCH if self.device.type == "cpu" else len(windows) or 1
        return torch.cat([self._embed(part) for part in windows.to(self.device).split(at_once)])

    def _embed(self, windows: torch.Tensor) -> torch.Tensor:
        images = self.transform(windows).to(self.dtype, memory_format=torch.channels_last)
        return self.model(images).flatten(1).float()

    def transform(self, windows: torch.Tensor) -> torch.Tensor:
        """Resize and normalise as the network's view says: uint8 (B, 3, 256, 256) -> float32 (B, 3, size, size)."""
        side = self.view.size
        pixels = windows.float() if side is None else resize(windows, side, side, self.view.interpolation)
        pixels = pixels / 255
        mean = pixels.new_tensor(self.view.mean).view(3, 1, 1)
        std = pixels.new_tensor(self.view.std).view(3, 1, 1)
        return (pixels - mean) / std


def resize(pixels: torch.Tensor, height: int, width: int, interpolation: str = "bilinear") -> torch.Tensor:
    """Resize uint8 (B, 3, H, W) with antialiasing to integers in float32 (B, 3, height, width).

    Values are rounded to 8 bits after each of the two passes, as in Pillow: networks are trained on images that Pillow
    resized.
    """
    values = pixels.float()
    for size in ((pixels.shape[2], width), (height, width)):  # across, then down
        values = F.interpolate(values, size=size, mode=interpolation, antialias=True)
        values = values.add(0.5).floor().clamp(0, 255)  # Pillow rounds half up
    return values
