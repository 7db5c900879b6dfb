"""The options that all scoring tools have in common."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from diffusion.cli.parser import natural_int, output_folder
from diffusion.formats import SIZE_POLICIES

ENCODERS = (
    "uni2, mobilenetv2, inception, a weights file or its folder, NAME=FILE, timm/NAME=FILE, torchvision/NAME=FILE"
)


def add_scoring_options(parser: ArgumentParser, out: str, encoders: Sequence[str] = ("mobilenetv2",)) -> None:
    """Add the options of encoders, images, cache and output. out: the default folder; encoders: the default ones."""
    add = parser.add_argument
    add("--encoders", nargs="+", default=list(encoders), metavar="ENCODER", help=f"{ENCODERS} [mobilenetv2]")
    add(
        "--on_size",
        choices=SIZE_POLICIES,
        default=SIZE_POLICIES[0],
        help="images that are not 256 x 256: refuse them, resize the square in their middle, or score their windows of 256",
    )
    add(
        "--strict",
        action="store_true",
        help="refuse images that cannot be read, instead of leaving them out and naming them",
    )
    add("--workers", type=natural_int, default=1, help="processes that read images; 0: none besides this one")
    add(
        "--cache",
        type=output_folder,
        metavar="DIR",
        help="folder that keeps features, which runs may share [OUT/features]",
    )
    add("--out", type=output_folder, default=out, help="folder for everything that is written")
