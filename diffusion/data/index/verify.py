"""Verification of what an index lists: every patch's image, latents and embeddings are read."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from diffusion.data.features.parts import PARTS
from diffusion.data.features.store import FeatureStore
from diffusion.data.slides.patches import read_patch
from diffusion.formats import PATCHES_DIR, WINDOW
from diffusion.utils.errors import InputError, MissingError

NAMES_AT_ONCE = 8192  # handed out to the workers


class Fault(NamedTuple):
    """What is wrong with one file of a patch."""

    kind: str  # image, latents or embeddings, then missing or bad
    reason: str


@dataclass(frozen=True)
class PatchCheck:
    """What every patch of one index key must have.

    features: None to look at the images alone; widths: of the parts whose width must be the same in every patch.
    """

    root: Path
    patch_size: int
    features: FeatureStore | None
    widths: Mapping[str, int] = field(default_factory=dict)

    def find_faults(self, name: str) -> list[Fault]:
        """Return what is wrong with a patch; its image is decoded, and every value of its features read."""
        readers: dict[str, Callable[[], object]] = {
            "image": lambda: read_patch(self.root / PATCHES_DIR / name, self.patch_size)
        }
        if self.features is not None:
            for part in self.features.prefixes:
                readers[PARTS[part].label] = partial(self._read_part, self.features, part, name)
        found = []
        for label, read in readers.items():
            try:
                read()
            except InputError as error:
                found.append(Fault(f"{label} {'missing' if isinstance(error, MissingError) else 'bad'}", str(error)))
        return found

    def _read_part(self, features: FeatureStore, part: str, name: str) -> None:
        width = features.read_part(part, name).shape[-1]
        if (usual := self.widths.get(part, width)) != width:
            label = PARTS[part].label
            raise InputError(f"{name} has {label} of width {width}, others of {usual}; extract it again")


def find_usual_widths(features: FeatureStore, names: Iterable[str]) -> dict[str, int]:
    """Return the commonest width of each part whose width is free; a part that no patch has is left out."""
    free = [part for part in features.prefixes if PARTS[part].shape(WINDOW)[-1] is None]
    widths: dict[str, Counter[int]] = {part: Counter() for part in free}
    for name in names:
        for part in free:
            with contextlib.suppress(InputError):
                widths[part][features.read_part(part, name).shape[-1]] += 1
    return {part: counts.most_common(1)[0][0] for part, counts in widths.items() if counts}


def verify_patches(names: Iterable[str], check: PatchCheck, workers: int) -> Generator[tuple[str, list[Fault]]]:
    """Yield every name with its faults, in order; `workers` processes read; with one, this process itself does."""
    if workers == 1:
        yield from ((name, check.find_faults(name)) for name in names)
        return
    remaining = iter(names)
    with ProcessPoolExecutor(workers, initializer=_init_worker, initargs=(check,)) as pool:
        while part := list(islice(remaining, NAMES_AT_ONCE)):
            yield from zip(part, pool.map(_find_worker_faults, part, chunksize=16), strict=True)


def _init_worker(check: PatchCheck) -> None:
    global _check  # of this worker: its open files serve all names
    _check = check


def _find_worker_faults(name: str) -> list[Fault]:
    return _check.find_faults(name)
