"""What a packed folder holds: packed.json, and where the folder lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion.data.features.parts import MASK, PARTS, USUAL_PARTS
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

    prefixes: of the loose files of each part; made_by: weights and window by prefix, as extraction notes them;
    mask_channels: of masks, where there are some.
    """

    key: str
    patch_size: int
    embedding_width: int
    prefixes: dict[str, str]
    made_by: dict[str, dict[str, Any]] = field(default_factory=dict)
    mask_channels: int = 1

    @property
    def patch_bytes(self) -> int:
        """Return the bytes of one patch, all parts."""
        return 2 * sum(math.prod(self.shape(part, self.patch_size)) for part in self.prefixes)

    def width(self, part: str) -> int:
        """Return the length of a part that may be any: channels of masks, else the width of embeddings."""
        return self.mask_channels if part == MASK.name else self.embedding_width

    def shape(self, part: str, size: int) -> tuple[int, ...]:
        """Return the shape of a part of an image of `size` pixels."""
        return PARTS[part].packed_shape(size, self.width(part))

    def to_json(self) -> dict[str, Any]:
        """Return the content of packed.json."""
        return {
            "key": self.key,
            "patch_size": self.patch_size,
            "embedding_width": self.embedding_width,
            **({"mask_channels": self.mask_channels} if MASK.name in self.prefixes else {}),
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
        rest = {"made_by": {}, "mask_channels": 1} | rest
        fields = {"key": str, "patch_size": int, "embedding_width": int, "made_by": dict, "mask_channels": int}
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
