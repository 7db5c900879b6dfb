"""The blocks of the network, typed."""

from __future__ import annotations

from diffusion.model.blocks import PixArtBlock
from diffusion.model.pixart import PixArt


def typed_blocks(model: PixArt) -> list[PixArtBlock]:
    """Return the network's blocks, which a ModuleList has as modules of any kind."""
    return [block for block in model.blocks if isinstance(block, PixArtBlock)]
