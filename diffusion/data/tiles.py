"""Tiles of public repositories that a network was trained on: fetched from where they come from, and checked.

A list names sets of tiles: the repository and commit that hold them, their licence and whom to name, and the SHA-256 of every
file. By it files are found in the repository's archive, wherever they are in there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import urllib.request
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from PIL import Image

from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write
from diffusion.utils.text import abbreviate, read_json

ARCHIVES = "https://github.com/{repository}/archive/{commit}.tar.gz"
LARGEST_TILE = 64 << 20  # bytes; larger files of an archive are none
DOWNLOAD_ERRORS = (OSError, HTTPException, tarfile.TarError, EOFError, zlib.error)  # how downloads fail
TIMEOUT = 60.0  # seconds without an answer


@dataclass(frozen=True)
class TileSet:
    """Tiles of one repository, with one resolution and one licence. files: name -> SHA-256.

    enlarge_to: pixels a side that tiles are resampled to, where they are smaller than a window; None: they are kept as they are.
    """

    name: str
    repository: str
    commit: str
    title: str
    attribution: str
    licence: str
    um_per_px: float
    files: dict[str, str]
    enlarge_to: int | None = None

    @property
    def archive(self) -> str:
        """Return the address of the repository at that commit."""
        return ARCHIVES.format(repository=self.repository, commit=self.commit)


def read_tile_sets(path: Path) -> list[TileSet]:
    """Read a list of sets. Raises MissingError, InputError."""
    listed = read_json(path, "list of tiles")
    try:
        return [TileSet(**each) for each in listed["sets"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no list of tiles: {error}") from None


def fetch_tiles(tiles: TileSet, out: Path, folder: Path | None = None) -> int:
    """Write the tiles of a set that `out` lacks as RGB images, PNG, and return their number.

    folder: where the files are already, at any depth; None: the repository's archive is downloaded.
    Raises InputError for a download that fails, and naming tiles that are not there.
    """
    wanted = {digest: name for name, digest in tiles.files.items() if not tile_path(out, name).is_file()}
    count = len(wanted)
    if not wanted:
        return 0
    if folder is None:
        print(f"downloading: {tiles.archive}", flush=True)
    with contextlib.closing(read_folder(folder) if folder else read_archive(tiles.archive)) as contents:
        for content in contents:
            name = wanted.pop(hashlib.sha256(content).hexdigest(), None)
            if name is not None:
                write_tile(content, tile_path(out, name), tiles.enlarge_to)
            if not wanted:
                return count
    raise InputError(
        f"{folder or tiles.archive} has no files with the SHA-256 of {abbreviate(wanted.values())} of {tiles.name}; get them from "
        f"where they were published ({tiles.attribution}), and name their folder with --tiles-from"
    )


def tile_path(folder: Path, name: str) -> Path:
    """Return where the tile of a file goes."""
    return folder / f"{Path(name).stem}.png"


def write_tile(content: bytes, path: Path, enlarge_to: int | None) -> None:
    """Write an image file's content as an RGB image, resampled to `enlarge_to` pixels a side where that is given."""
    with Image.open(io.BytesIO(content)) as image:
        tile = image.convert("RGB")
    if enlarge_to is not None:
        tile = tile.resize((enlarge_to, enlarge_to), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        tile.save(part, format="PNG")


def read_folder(folder: Path) -> Generator[bytes]:
    """Yield the contents of all files of a folder that may be tiles. Raises MissingError."""
    if not folder.is_dir():
        raise MissingError(f"no folder {folder} with tiles")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size <= LARGEST_TILE:
            yield path.read_bytes()


def read_archive(address: str) -> Generator[bytes]:
    """Yield the contents of all files of a .tar.gz that may be tiles, while it is downloaded. Raises InputError."""
    try:
        with (
            urllib.request.urlopen(address, timeout=TIMEOUT) as response,
            tarfile.open(fileobj=response, mode="r|gz") as archive,
        ):
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and member.size <= LARGEST_TILE else None
                if file is not None:
                    yield file.read()
    except DOWNLOAD_ERRORS as error:
        raise InputError(
            f"{address} could not be downloaded ({error}); run again with network, or name a folder that has the files with --tiles-from"
        ) from None
