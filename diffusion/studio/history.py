"""What a studio has made: a folder for each result, with what it was made of, so that nothing is lost when the server ends."""

from __future__ import annotations

import json
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write, atomic_write_bytes
from diffusion.utils.text import read_json

ENTRY = "entry.json"
PICTURE, BEFORE, THUMBNAIL = "picture.png", "before.png", "thumbnail.jpg"
SERVED = {PICTURE: "image/png", BEFORE: "image/png", THUMBNAIL: "image/jpeg"}  # of an entry's files
THUMBNAIL_SIDE = 160
NUMBER = re.compile(r"[0-9]{14}-[0-9a-f]{8}")  # time, then what tells entries of one second apart


@dataclass(frozen=True)
class History:
    """The folder of all results."""

    folder: Path

    def begin(self) -> Path:
        """Make the folder of a new entry, which counts once it is finished, and return it."""
        number = f"{time.strftime('%Y%m%d%H%M%S')}-{uuid.uuid4().hex[:8]}"
        place = self.folder / number
        place.mkdir(parents=True)
        return place

    def finish(self, place: Path, entry: dict[str, Any]) -> dict[str, Any]:
        """Complete an entry whose picture is there: thumbnail and record; return it with its number."""
        with Image.open(place / PICTURE) as image:
            width, height = image.size
            small = image.convert("RGB")
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        with atomic_write(place / THUMBNAIL) as temporary:
            small.save(temporary, format="JPEG", quality=85)
        whole = {**entry, "number": place.name, "width": width, "height": height}
        atomic_write_bytes(place / ENTRY, (json.dumps(whole, indent=2) + "\n").encode())
        return whole

    def entries(self) -> list[dict[str, Any]]:
        """Return all finished entries, the latest first; those that are damaged are left out."""
        found = []
        if self.folder.is_dir():
            for place in sorted(self.folder.iterdir(), reverse=True):
                if NUMBER.fullmatch(place.name) and not place.is_symlink() and (place / ENTRY).is_file():
                    try:
                        entry = read_json(place / ENTRY)
                    except InputError:
                        continue
                    found.append({**entry, "number": place.name})
        return found

    def entry(self, number: str) -> dict[str, Any]:
        """Return a finished entry. Raises MissingError, InputError for one that is damaged."""
        return read_json(self.file(number, PICTURE).with_name(ENTRY))

    def file(self, number: str, name: str) -> Path:
        """Return a file of an entry. Raises MissingError for one that is not there, or no file that is shown."""
        if not NUMBER.fullmatch(number) or name not in SERVED:
            raise MissingError(f"no such file of a result: {number[:40]}/{name[:40]}")
        path = self.folder / number / name
        if not path.is_file() or path.is_symlink() or path.parent.is_symlink():
            raise MissingError(f"no result {number}: it was removed")
        return path

    def remove(self, number: str) -> None:
        """Delete an entry. Raises MissingError."""
        shutil.rmtree(self.file(number, PICTURE).parent)

    def sweep(self) -> None:
        """Delete what jobs that were never finished have left."""
        if self.folder.is_dir():
            for place in self.folder.iterdir():
                if NUMBER.fullmatch(place.name) and not place.is_symlink() and not (place / ENTRY).is_file():
                    shutil.rmtree(place, ignore_errors=True)
