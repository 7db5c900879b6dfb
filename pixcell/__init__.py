"""Generative foundation models for digital pathology: open a run or released weights, sample, embed, encode, score, train.

Examples:
    >>> import pixcell
    >>> run = pixcell.open_run("output/256")
    >>> for sample in run.sample(images=["tissue.png"], count=2, steps=4):
    ...     sample.image.save(f"sample_{sample.number}.png")

Nothing large is imported before a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from diffusion import __version__

if TYPE_CHECKING:
    from diffusion.pipeline import PixCellPipeline
    from diffusion.utils.errors import InputError, MissingError
    from pixcell.pictures import Sample, SlideRegion
    from pixcell.run import OpenRun, open_run
    from pixcell.scoring import score
    from pixcell.training import train

HOMES = {
    "open_run": "pixcell.run",
    "OpenRun": "pixcell.run",
    "Sample": "pixcell.pictures",
    "SlideRegion": "pixcell.pictures",
    "score": "pixcell.scoring",
    "train": "pixcell.training",
    "PixCellPipeline": "diffusion.pipeline",
    "InputError": "diffusion.utils.errors",
    "MissingError": "diffusion.utils.errors",
}
__all__ = [
    "InputError",
    "MissingError",
    "OpenRun",
    "PixCellPipeline",
    "Sample",
    "SlideRegion",
    "__version__",
    "open_run",
    "score",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in HOMES:
        raise AttributeError(f"module 'pixcell' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
