"""What networks are measured on: a preset, a resolution, a batch, a device, a precision.

Letters: B batch, C channels, H W cells of the latents, L condition tokens of width D, N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.peers import DiffusersNetwork
from diffusion.model.pixart import PixArt, build_model
from diffusion.utils.hardware import torch_dtype

SIZES = {"tiny": "PixArt_Ti_2_UNI", "B": "PixArt_B_2_UNI", "XL": "PixArt_XL_2_UNI"}
STAGES = {256: (1, 0.5), 512: (4, 1.0), 1024: (16, 2.0)}  # pixels -> condition tokens, pe_interpolation
SIDE, GPU_SIDE = 2048, 8192  # of the square matrices whose product is the machine's own rate


@dataclass(frozen=True)
class Case:
    """size: of SIZES; pixels: 256, 512 or 1024; precision: fp32, bf16 or fp16, under autocast."""

    size: str
    pixels: int
    batch: int
    device: torch.device
    precision: str

    @property
    def name(self) -> str:
        return f"{self.size} {self.pixels}"

    def network(self) -> PixArt:
        """With random weights, none of them zero: outputs are to be compared."""
        tokens, interpolation = STAGES[self.pixels]
        torch.manual_seed(0)
        with self.building():
            model = build_model(
                SIZES[self.size],
                input_size=self.pixels // 8,
                model_max_length=tokens,
                use_cond_pos_embed=tokens > 1,
                pe_interpolation=interpolation,
            )
            for linear in (*(block.cross_attn.proj for block in model.blocks), model.final_layer.linear):
                nn.init.normal_(linear.weight, std=0.02)
        model.eval()
        return model if self.device.type == "cpu" else model.to(self.device)  # tensors without values cannot be moved

    def peer(self, model: PixArt) -> DiffusersNetwork:
        """diffusers' network with the same weights."""
        with self.building():
            return DiffusersNetwork(model).to(self.device).eval()

    def building(self) -> AbstractContextManager:
        """Where new tensors are made: on a GPU at once, since a CPU takes seconds to draw the weights of XL."""
        return self.device if self.device.type == "cuda" else nullcontext()

    def inputs(self, model: PixArt) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x (B, C, H, W), timestep (B,), y (B, L, D)."""
        generator, cells = torch.Generator().manual_seed(1), self.pixels // 8
        x = torch.randn(self.batch, model.config.in_channels, cells, cells, generator=generator)
        timestep = torch.randint(1000, (self.batch,), generator=generator)
        y = torch.randn(self.batch, model.config.model_max_length, model.config.caption_channels, generator=generator)
        return tuple(each.to(self.device) for each in (x, timestep, y))

    @property
    def first_run_is_slower(self) -> bool:
        """Of a long run, too, so that it must not count: a GPU chooses its kernels then."""
        return self.device.type != "cpu"

    def autocast(self) -> AbstractContextManager:
        dtype = torch_dtype(self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def product(self) -> tuple[Callable[[], torch.Tensor], int]:
        """A product of two square matrices in this precision, and its operations."""
        side = SIDE if self.device.type == "cpu" else GPU_SIDE
        left, right = (torch.randn(side, side, device=self.device, dtype=torch_dtype(self.precision)) for _ in range(2))
        return lambda: left @ right, 2 * side**3


def off(ours: torch.Tensor, peer: torch.Tensor) -> float:
    """The largest difference over the peer's largest value."""
    return ((ours - peer).abs().max() / peer.abs().max()).item()
