"""Public names: PixArt, PixArtConfig, build_model."""

from diffusion.model.pixart import PixArt, build_model
from diffusion.model.pixart_config import PixArtConfig

__all__ = ["PixArt", "PixArtConfig", "build_model"]
