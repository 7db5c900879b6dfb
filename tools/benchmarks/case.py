"""A case to measure: a network of a preset, its inputs, the device and the precision.

Letters: B batch, C channels, H W cells of the latents, L condition tokens of width D, N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.operations import typed_blocks
from benchmarks.peers import DiffusersNetwork
from diffusion.formats import LATENT_FACTOR
from diffusion.model.pixart import PixArt, build_model
from diffusion.utils.hardware import torch_dtype

SIZES = {"tiny": "PixArt_Ti_2_UNI", "B": "PixArt_B_2_UNI", "XL": "PixArt_XL_2_UNI"}
STAGES = {256: (1, 0.5), 512: (4, 1.0), 1024: (16, 2.0)}  # pixels -> condition tokens, pe_interpolation
SIDE, GPU_SIDE = 2048, 8192  # of the square matrices whose product is the machine's own rate


@dataclass(frozen=True)
class Case:
    """What a network is measured on. size: of SIZES; pixels: of STAGES; precision: fp32, bf16 or fp16, under autocast."""

    size: str
    pixels: int
    batch: int
    device: torch.device
    precision: str

    @property
    def name(self) -> str:
        """The size and the pixels, for names of rows."""
        return f"{self.size} {self.pixels}"

    def build_network(self) -> PixArt:
        """Return our network with random weights, none of them zero, so that outputs can be compared."""
        tokens, interpolation = STAGES[self.pixels]
        torch.manual_seed(0)
        with self._build_device():
            model = build_model(
                SIZES[self.size],
                input_size=self.pixels // LATENT_FACTOR,
                model_max_length=tokens,
                use_cond_pos_embed=tokens > 1,
                pe_interpolation=interpolation,
            )
            for linear in (*(block.cross_attn.proj for block in typed_blocks(model)), model.final_layer.linear):
                nn.init.normal_(linear.weight, std=0.02)
        model.eval()
        return model if self.device.type == "cpu" else model.to(self.device)  # FakeTensors on a CPU cannot be moved

    def build_peer(self, model: PixArt) -> DiffusersNetwork:
        """Return diffusers' network with the same weights."""
        with self._build_device():
            return DiffusersNetwork(model).to(self.device).eval()

    def _build_device(self) -> AbstractContextManager:
        """Return a context in which new tensors are on the GPU at once: a CPU takes seconds to draw the weights of XL."""
        return self.device if self.device.type == "cuda" else nullcontext()

    def make_inputs(self, model: PixArt) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return x (B, C, H, W), timestep (B,) and y (B, L, D), drawn at random."""
        generator, cells = torch.Generator().manual_seed(1), self.pixels // LATENT_FACTOR
        x = torch.randn(self.batch, model.config.in_channels, cells, cells, generator=generator)
        timestep = torch.randint(1000, (self.batch,), generator=generator)
        y = torch.randn(self.batch, model.config.model_max_length, model.config.caption_channels, generator=generator)
        return x.to(self.device), timestep.to(self.device), y.to(self.device)

    @property
    def needs_warm_up(self) -> bool:
        """Whether even a long first run is slower and must not count: a GPU chooses its kernels then."""
        return self.device.type != "cpu"

    def autocast(self) -> AbstractContextManager:
        """Return a context that computes in the case's precision."""
        dtype = torch_dtype(self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def make_product(self) -> tuple[Callable[[], torch.Tensor], int]:
        """Return a function that multiplies two square matrices in this precision, and its operations."""
        side = SIDE if self.device.type == "cpu" else GPU_SIDE
        left, right = (torch.randn(side, side, device=self.device, dtype=torch_dtype(self.precision)) for _ in range(2))
        return lambda: left @ right, 2 * side**3


def max_rel_error(ours: torch.Tensor, peer: torch.Tensor) -> float:
    """Return the largest difference, over the peer's largest absolute value."""
    return ((ours - peer).abs().max() / peer.abs().max()).item()
