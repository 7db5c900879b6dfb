"""PixCell: generative foundation models for digital pathology."""

from __future__ import annotations

from diffusion import __version__

__all__ = ["__version__"]
