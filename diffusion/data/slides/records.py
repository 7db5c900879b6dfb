"""Records of cut slides: how a slide was cut, and what became of the squares of its grid.

Beside the folders of a cohort's slides, `slides_<size>/<slide>.json` is the record of one.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffusion.data.slides.grid import Grid
from diffusion.utils.errors import InputError
from diffusion.utils.text import read_json

JSON_KEYS = {"mpp_given": "told", "is_earlier": "before"}  # of a record's file, where they differ


@dataclass(frozen=True)
class CutSettings:
    """How slides are cut; a slide that was cut otherwise before is refused."""

    grid: Grid
    mpp: float = 0.5  # microns per pixel of the patches
    image_mpp: float | None = None  # of the files, whatever they say themselves; None: what they say
    tissue_threshold: float = 0.5
    max_blur: float = 0.68
    quality: int = 95  # of the JPEG
    orientation: str | None = None  # how patches are turned or mirrored, one of ORIENTATIONS


@dataclass(frozen=True)
class SlideRecord:
    """What became of one slide."""

    slide: str
    bytes: int  # of its file
    settings: dict
    mpp_given: bool  # whether image_mpp counts: for plain images, and for slides where it was given
    note: str  # which pixels were read, in words
    patches: int
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    seconds: float = 0.0
    is_earlier: bool = False  # made by a run before this one

    def to_json(self) -> dict[str, Any]:
        """Return the content of the record's file, whose keys are older than the names here."""
        return {JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SlideRecord:
        """Return the record in a file. Raises TypeError for keys that are missing or unknown."""
        names = {key: name for name, key in JSON_KEYS.items()}
        return cls(**{names.get(key, key): value for key, value in values.items()})


def slide_folders(path: Path, cohort: Path, settings: CutSettings) -> tuple[Path, Path]:
    """Return where the patches of a slide go, and where its picture and record do."""
    size = settings.grid.size
    return cohort / f"single_{size}" / path.stem, cohort / f"slides_{size}"


def find_record(path: Path, cohort: Path, settings: CutSettings) -> SlideRecord | None:
    """Return the record of a slide that is cut already, else None. Raises InputError when it was cut otherwise."""
    folder, records = slide_folders(path, cohort, settings)
    file = records / f"{path.stem}.json"
    if not file.is_file():
        if folder.is_dir():
            raise InputError(f"{folder} has patches, but no record of how they were cut; take another --cohort")
        return None
    try:
        record = SlideRecord.from_json(read_json(file, "record of a slide", f"delete it and {folder}"))
        had = {**record.settings, "bytes": record.bytes}
    except TypeError as error:
        raise InputError(f"{file} is no record of a slide ({error}); delete it and {folder}") from error
    if record.patches and not folder.is_dir():  # killed between the two
        return None
    asked = {**settings_json(settings), "bytes": path.stat().st_size if path.is_file() else record.bytes}
    if not record.mpp_given:  # it was cut by what the file says
        had["image_mpp"] = None
    for name in asked:
        if asked[name] != had.get(name):
            raise InputError(
                f"{path.name} was cut with {name} {had.get(name)} before, and now {asked[name]} is asked for; "
                f"take another --cohort, or delete {folder}, {file}, and what was extracted or packed from them"
            )
    return dataclasses.replace(record, is_earlier=True)


def grid_stride(patches: Path, name: str, size: int) -> int | None:
    """Return how many places of its slide's grid lie from one patch to the next that does not overlap it.

    One, unless the slide's record has a step of another length; None where no patch begins at the end of another.
    Raises InputError for a damaged record.
    """
    folder = (patches / name).parent
    record = folder.parent.with_name(f"slides_{size}") / f"{folder.name}.json"
    if not record.is_file():
        return 1
    try:
        step = int(read_json(record, "record of a slide", "cut the slide again")["settings"]["step"])
        return size // step if size % step == 0 else None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{record} is no record of a slide ({error!r}); cut the slide again") from None


def settings_json(settings: CutSettings) -> dict:
    """Return settings as JSON gives them back, one level deep."""
    values = asdict(settings)
    if values["orientation"] is None:
        del values["orientation"]  # which older records have not
    return json.loads(json.dumps({**values.pop("grid"), **values}))
