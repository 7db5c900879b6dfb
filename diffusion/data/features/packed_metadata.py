"""What a packed folder holds: packed.json, and where the folder lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion.data.features.parts import PARTS, USUAL_PARTS
from diffusion.utils.errors import InputError
from diffusion.utils.text import read_json

FORMAT = 1
METADATA = "packed.json"


def packed_folder(folder: Path, key: str, prefixes: Mapping[str, str]) -> Path:
    """Return where the packed features of an index key lie, below ROOT/packed (or another folder named)."""
    return folder / key / "-".join(prefixes.values())


@dataclass(frozen=True)
class PackedMetadata:
    """What a packed folder holds.

    prefixes: of the loose files of each part; made_by: weights and window by prefix, as extraction notes them.
    """

    key: str
    patch_size: int
    embedding_width: int
    prefixes: dict[str, str]
    made_by: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def patch_bytes(self) -> int:
        """Return the bytes of one patch, all parts."""
        shapes = [PARTS[part].packed_shape(self.patch_size, self.embedding_width) for part in self.prefixes]
        return 2 * sum(map(math.prod, shapes))

    def to_json(self) -> dict[str, Any]:
        """Return the content of packed.json."""
        return {
            "key": self.key,
            "patch_size": self.patch_size,
            "embedding_width": self.embedding_width,
            **{PARTS[part].setting: prefix for part, prefix in self.prefixes.items()},
            "made_by": self.made_by,
            "format": FORMAT,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PackedMetadata:
        """Return what packed.json describes. Raises ValueError for keys that are missing, unknown, or of another type."""
        rest = dict(values)
        rest.pop("format", None)
        prefixes = {part.name: rest.pop(part.setting) for part in PARTS.values() if part.setting in rest}
        rest.setdefault("made_by", {})
        fields = {"key": str, "patch_size": int, "embedding_width": int, "made_by": dict}
        if missing := [*(fields.keys() - rest.keys()), *(PARTS[p].setting for p in USUAL_PARTS if p not in prefixes)]:
            raise ValueError(f"{', '.join(sorted(missing))} missing")
        if unknown := rest.keys() - fields.keys():
            raise ValueError(f"unknown {', '.join(sorted(unknown))}")
        for name, value in [*rest.items(), *((PARTS[part].setting, prefix) for part, prefix in prefixes.items())]:
            kind = fields.get(name, str)
            if type(value) is not kind or not (value or kind is dict):
                raise ValueError(f"{name} is {value!r}, expected {kind.__name__}")
        return cls(prefixes=prefixes, **rest)


def read_metadata(folder: Path) -> PackedMetadata | None:
    """Read what lies packed in a folder; None where nothing does. Raises InputError for another format or description."""
    if not (folder / METADATA).exists():
        return None
    values = read_json(folder / METADATA, "description of packed features", "pack them again")
    if values.get("format", FORMAT) != FORMAT:
        raise InputError(f"{folder} is of format {values['format']}, expected {FORMAT}; pack these features again")
    try:
        return PackedMetadata.from_json(values)
    except ValueError as error:
        raise InputError(f"{folder / METADATA} does not describe packed features ({error}); pack them again") from None
