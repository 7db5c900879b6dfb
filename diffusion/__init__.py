"""PixCell: generative foundation models for digital pathology. The public names are those of the package `pixcell`."""

__version__ = "0.2.0"
