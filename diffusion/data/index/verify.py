"""Whether what an index lists is there and whole: every patch's image, latents and embeddings."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from diffusion.data.features.store import FeatureStore
from diffusion.data.slides.patches import read_patch
from diffusion.formats import PATCHES_DIR
from diffusion.utils.errors import InputError, MissingError

NAMES_AT_ONCE = 8192  # handed out to the workers


class Fault(NamedTuple):
    """What is wrong with one file of a patch."""

    kind: str  # image, latents or embeddings, then missing or bad
    reason: str


@dataclass(frozen=True)
class Check:
    """What every patch of one index key must have.

    features: None to look at the images alone; width: of every patch's embeddings, None for any.
    """

    root: Path
    patch_size: int
    features: FeatureStore | None
    width: int | None = None

    def faults(self, name: str) -> list[Fault]:
        """What is wrong with a patch: images are decoded, features read whole, every value of them."""
        readers = {"image": lambda: read_patch(self.root / PATCHES_DIR / name, self.patch_size)}
        if self.features is not None:
            readers["latents"] = lambda: self.features.moments(name)
            readers["embeddings"] = lambda: self._tokens(name)
        found = []
        for part, read in readers.items():
            try:
                read()
            except InputError as error:
                found.append(Fault(f"{part} {'missing' if isinstance(error, MissingError) else 'bad'}", str(error)))
        return found

    def _tokens(self, name: str) -> None:
        width = self.features.tokens(name).shape[1]
        if self.width not in (None, width):
            raise InputError(f"{name} has embeddings of width {width}, others of {self.width}; extract it again")


def usual_width(features: FeatureStore, names: Iterable[str]) -> int | None:
    """Return the width that most of some patches' embeddings have; None where none can be read."""
    widths: Counter[int] = Counter()
    for name in names:
        with contextlib.suppress(InputError):
            widths[features.tokens(name).shape[1]] += 1
    return widths.most_common(1)[0][0] if widths else None


def verify(names: Iterable[str], check: Check, workers: int) -> Iterator[tuple[str, list[Fault]]]:
    """Every name with its faults, in order; `workers` processes read, one of them without starting any."""
    if workers == 1:
        yield from ((name, check.faults(name)) for name in names)
        return
    remaining = iter(names)
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(check,)) as pool:
        while part := list(islice(remaining, NAMES_AT_ONCE)):
            yield from zip(part, pool.map(_faults, part, chunksize=16), strict=True)


def _start(check: Check) -> None:
    global _check  # of this worker: its open files serve all names
    _check = check


def _faults(name: str) -> list[Fault]:
    return _check.faults(name)
