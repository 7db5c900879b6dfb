"""The folder that samples are written to: which are there, and that they were all made in one way."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.data.features.masks import write_mask
from diffusion.formats import CONTROL_DIR, REAL_DIR, SAMPLES_FILE, SYNTHETIC_DIR
from diffusion.generation.conditions import NamedCondition
from diffusion.generation.image_files import save_image
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.folders import is_hidden
from diffusion.utils.recorded import describe_difference
from diffusion.utils.text import printable_name, read_json

FINGERPRINTS = frozenset(("weights", "vae_weights", "data"))  # settings that are fingerprints
SAVE_OPTIONS = {"png": {"compress_level": 3}, "jpeg": {}}


@dataclass(frozen=True)
class OutputFolder:
    """A folder of samples: `syn/` and, with the same file names, `real/` of tissue to compare with and `control/` of masks.

    tissue: another folder than `real/`, which several output folders may share.
    """

    path: Path
    extension: str
    tissue: Path | None = None

    def check_or_write_settings(self, settings: dict[str, Any], places: dict[str, Any]) -> None:
        """Write the settings, or compare them with those of the samples in the folder, which all share one set.

        settings: what identifies samples by content; places: where weights and data are, which may move.
        Raises InputError naming the first setting that differs.
        """
        settings, places = json.loads(json.dumps(settings)), json.loads(json.dumps(places))
        file, samples = self.path / SAMPLES_FILE, self.path / SYNTHETIC_DIR
        if file.is_file() and samples.is_dir() and any(name[0] != "." for name in os.listdir(samples)):
            advice = "name another folder for the output, or delete it with the samples beside it"
            recorded = read_json(file, "record of samples", advice)
            if not recorded.keys() & FINGERPRINTS:  # written by a version that compared places alone
                settings = {name: value for name, value in settings.items() if name not in FINGERPRINTS} | places
            else:
                recorded = {name: value for name, value in recorded.items() if name not in places}
            if differs := describe_difference(recorded, settings):
                before, now = differs
                raise InputError(
                    f"{self.path} holds samples with {before}, not {now}; name another folder for the output with --out"
                )
            return
        atomic_write_bytes(file, (json.dumps({**settings, **places}, indent=2) + "\n").encode())

    def list_missing(
        self, count: int, has_real: Callable[[int], bool] = lambda i: False, has_mask: bool = False
    ) -> list[int]:
        """Return the numbers of the images, of `count`, that are not yet in `syn` and, where they have tissue, in `real`.

        has_mask: whether each has a mask in `control`, too. Files are written atomically, so one that exists is complete.
        Raises InputError when there are more than `count`, or files that are not samples.
        """
        folder = self.path / SYNTHETIC_DIR
        names = [name for name in os.listdir(folder) if not is_hidden(name)] if folder.is_dir() else []
        foreign = [name for name in names if not re.match(r"\d{6,}_", name)]
        if foreign:
            raise InputError(
                f"{folder} holds {printable_name(foreign[0])}, which is no sample; name another folder for the output with --out"
            )
        present = {int(name.split("_")[0]): name for name in names}
        if any(i >= count for i in present):
            raise InputError(
                f"{self.path} holds {len(present)} samples, not {count}; name another folder with --out, or ask for as many with --count"
            )
        if has_mask:
            masks = self.path / CONTROL_DIR
            present = {i: name for i, name in present.items() if (masks / name).with_suffix(".png").is_file()}
        complete = {i for i, name in present.items() if (self.real_folder / name).is_file() or not has_real(i)}
        return [i for i in range(count) if i not in complete]

    def image_path(self, part: str, i: int, name: str) -> Path:
        """Return the path of image i; part: `syn`, `real` or `control`."""
        folder = self.real_folder if part == REAL_DIR else self.path / part
        return folder / f"{i:06d}_{name}.{self.extension}"

    @property
    def real_folder(self) -> Path:
        """Return the folder of the tissue that conditions."""
        return self.tissue or self.path / REAL_DIR

    def write_images(
        self,
        i: int,
        condition: NamedCondition,
        synthetic: torch.Tensor,
        note: dict[str, Any],
        mask: np.ndarray | None = None,
    ) -> None:
        """Write image i, uint8 (3, S, S), with a note of how it was made, and the condition's own pixels if it has some.

        mask: that it was made for, uint8 (S, S), which is written, too.
        """
        pictures = [(SYNTHETIC_DIR, synthetic, {**note, "condition": condition.name})]
        if condition.pixels is not None:
            # after the sample: a folder without samples accepts other settings, and must not hold tissue of these
            pictures.append((REAL_DIR, condition.pixels, {"condition": condition.name}))
        for part, pixels, metadata in pictures:
            save_image(self.image_path(part, i, condition.name), pixels, metadata, **SAVE_OPTIONS[self.extension])
        if mask is not None:
            write_mask(self.image_path(CONTROL_DIR, i, condition.name).with_suffix(".png"), mask)


def check_or_write_record(file: Path, record: dict[str, Any], what: str) -> None:
    """Write how the pictures of a folder are made into a file there, or compare it with what is there.

    A folder without pictures takes another record. what: what messages call the pictures. Raises InputError naming what differs.
    """
    record = json.loads(json.dumps(record))
    if not file.is_file() or not any(path.suffix in (".png", ".tiff") for path in file.parent.rglob("*")):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, (json.dumps(record, indent=2) + "\n").encode())
        return
    before = read_json(file, f"record of {what}", "delete it with the pictures beside it")
    if differs := describe_difference(before, record):
        was, now = differs
        raise InputError(
            f"{file.parent} holds pictures with {was}, not {now}; name another folder for the output with --out"
        )
