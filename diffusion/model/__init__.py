"""Public names: PixArt, build_model."""

from diffusion.model.pixart import PixArt, build_model

__all__ = ["PixArt", "build_model"]
