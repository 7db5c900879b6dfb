"""Verification of what an index lists: every patch's image, latents and embeddings are read."""

from __future__ import annotations

import contextlib
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from diffusion.data.features.loose import LooseFeatures, features_folder
from diffusion.data.features.parts import PARTS
from diffusion.data.features.store import FeatureStore, open_features, probe_names
from diffusion.data.index.names import exclude_names, name_hash, unique_names
from diffusion.data.index.patch_index import PatchIndex, iterate_names, split_key
from diffusion.data.index.writer import write_index
from diffusion.data.slides.patches import read_patch
from diffusion.formats import PATCHES_DIR, WINDOW
from diffusion.utils.errors import InputError, MissingError

log = logging.getLogger(__name__)

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
        width = PARTS[part].width_of(features.read_part(part, name))
        if (usual := self.widths.get(part, width)) != width:
            label = PARTS[part].label
            raise InputError(f"{name} has {label} of width {width}, others of {usual}; extract it again")

    @classmethod
    def open(
        cls, root: Path, index: PatchIndex, features_dir: str | None, prefixes: Mapping[str, str] | None
    ) -> PatchCheck:
        """Open the features of an index of one key, and return the check of its patches.

        features_dir: folder of the features; None: wherever they are. prefixes: of the parts; None to look at the images alone.
        """
        (key,) = index.keys
        size, probed = split_key(key)[1], probe_names(index, 0)
        if prefixes is None:
            return cls(root, size, None)
        features: FeatureStore
        try:
            features = open_features(root, features_dir, key, probed, size, prefixes)
        except MissingError as error:  # of some patches; others may have theirs
            log.warning("%s: %s", key, error)
            features = LooseFeatures(features_folder(root, features_dir), size, prefixes)
        return cls(root, size, features, find_usual_widths(features, probed))


@dataclass(frozen=True)
class KeyFaults:
    """What was found under a key of an index."""

    patches: int
    faulty: np.ndarray  # uint64, the hashes of the names of patches that are not sound
    kinds: Counter[str]  # how many faults of each kind
    repeats: int  # names that the index has once more

    def __str__(self) -> str:
        """Return `8 patches, 6 sound; 2 image missing`."""
        kinds = self.kinds + Counter({"named more than once": self.repeats})
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return f"{self.patches} patches, {self.patches - len(self.faulty)} sound" + (f"; {found}" if found else "")


def verify_key(
    index: PatchIndex, check: PatchCheck, workers: int, listing: TextIO, show: Callable[[Iterable], Iterable]
) -> KeyFaults:
    """Check every patch of an index of one key; write the faults to `listing`, a line each.

    show: wraps the patches, for a progress bar.
    """
    (key,) = index.keys
    faulty, seen, kinds = array("Q"), array("Q"), Counter()
    with closing(verify_patches(iterate_names(index.path, key), check, workers)) as checked:
        for name, faults in show(checked):
            seen.append(name_hash(name))
            kinds.update(fault.kind for fault in faults)
            listing.writelines(f"{name}\t{fault.kind}\t{fault.reason}\n" for fault in faults)
            if faults:
                faulty.append(name_hash(name))
    repeats = len(seen) - len(np.unique(np.frombuffer(seen, np.uint64)))
    return KeyFaults(len(index), np.array(faulty, dtype=np.uint64), kinds, repeats)


def write_sound_index(path: Path, index: Path, faults: Mapping[str, KeyFaults]) -> int:
    """Write an index without the faulty patches of some keys, every name once; return how many patches these have now."""
    sound = {key: unique_names(exclude_names(iterate_names(index, key), found.faulty)) for key, found in faults.items()}
    return sum(write_index(path, sound, previous=index).values())


def find_usual_widths(features: FeatureStore, names: Iterable[str]) -> dict[str, int]:
    """Return the commonest width of each part whose width is free; a part that no patch has is left out."""
    free = [part for part in features.prefixes if None in PARTS[part].shape(WINDOW)]
    widths: dict[str, Counter[int]] = {part: Counter() for part in free}
    for name in names:
        for part in free:
            with contextlib.suppress(InputError):
                widths[part][PARTS[part].width_of(features.read_part(part, name)) or 0] += 1
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
