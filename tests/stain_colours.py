"""pixcell stain with an embedder whose answer is known, for tests on several processes: python tests/stain_colours.py ARGUMENTS."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion.cli import main
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.networks import View

WIDTH = 1280  # of nano's embeddings


class RepeatedColour(torch.nn.Module):
    """The mean colour, as often as it fits."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return windows.mean((2, 3)).repeat(1, WIDTH // 3 + 1)[:, :WIDTH]


if __name__ == "__main__":
    embedder = PatchEmbedder(RepeatedColour(), "colours", WIDTH, View(None, mean=(0, 0, 0), std=(1, 1, 1)))
    PatchEmbedder.load = lambda *_, **__: embedder  # type: ignore[method-assign]
    sys.exit(main.call(["stain", *sys.argv[1:]]))
