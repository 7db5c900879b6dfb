"""Pairs of images in the folders of public data sets: which file is the partner of which, and on which side of a split.

Known are MIST (Li et al., MICCAI 2023, arXiv 2303.06193), HER2Match (arXiv 2506.18484), and any two folders of equal names, with
equal sub-folders where there are any.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from diffusion.data.slides.discovery import IMAGE_SUFFIXES
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.folders import SkippedEntries, is_hidden, walk_folders
from diffusion.utils.text import abbreviate
from diffusion.utils.values import is_plain_name

TILE_SUFFIXES = IMAGE_SUFFIXES | {".tif", ".tiff"}
SPLITS = ("train", "val", "test")  # folders of a source that has been split
MIST_FOLDER = "TrainValAB"
JOINT = "+"  # between the folders of a path that is a slide's name; rarer in names than _ and -


class TilePair(NamedTuple):
    """Two images of the same tissue. split: the folder of the source, "" without one; slide: what the split keeps together."""

    source: Path
    target: Path
    split: str
    slide: str

    @property
    def stem(self) -> str:
        """Return the name of both files, without their suffixes."""
        return self.source.stem


@dataclass
class FoundPairs:
    """The pairs of a source; unmatched: files that have no partner, or not only one, and why."""

    pairs: list[TilePair] = field(default_factory=list)
    unmatched: list[tuple[str, str]] = field(default_factory=list)


def find_pairs(layout: str, source: Path, target: Path | None = None, slide_pattern: str | None = None) -> FoundPairs:
    """Find the pairs of a source, in natural order.

    layout: mist, her2match or folders; target: the second folder of the last. The last may have sub-folders, the same in both, and
    partners have the same path below their folders, but for the suffix. slide_pattern: a regular expression with one group, which is
    the slide in the name of a file without suffix; None: the sub-folder is the slide, `a/b` as `a+b`, and a file in none is a slide
    of its own. Hidden files are passed over.
    Raises MissingError for folders that are not there or have no image, InputError for a pattern that is none or does not fit.
    """
    pattern = None if slide_pattern is None else compile_pattern(slide_pattern)
    found, images = FoundPairs(), 0
    for split, (first, second) in split_folders(layout, source, target).items():
        for folder in (first, second):
            if not folder.is_dir():
                raise MissingError(f"no folder {folder}, the other stain of {second if folder == first else first}")
        deep = layout == "folders"
        for name, sources, targets in _match(_list_images(first, second, deep), _list_images(second, first, deep)):
            images += 1
            if len(sources) == len(targets) == 1:
                found.pairs.append(TilePair(sources[0], targets[0], split, _slide_of(name, sources[0], pattern)))
                continue
            for path in (*sources, *targets) if sources and targets else ():
                found.unmatched.append((str(path), "several files of this name, so that its partner is not known"))
            for path, other in (
                *((path, second) for path in sources if not targets),
                *((path, first) for path in targets if not sources),
            ):
                found.unmatched.append((str(path), f"no file of this name in {(other / name).parent}"))
    if not images:
        raise MissingError(f"no images ({', '.join(sorted(TILE_SUFFIXES))}) in {source}")
    return found


def split_folders(layout: str, source: Path, target: Path | None) -> dict[str, tuple[Path, Path]]:
    """Return the folders of both stains by split; without splits they are under "".

    Raises MissingError where the layout's folders are not there.
    """
    if not source.is_dir():
        raise MissingError(f"--source: no folder {source}")
    if layout == "mist":
        base = source / MIST_FOLDER if (source / MIST_FOLDER).is_dir() else source
        folders = {split: (base / f"{split}A", base / f"{split}B") for split in SPLITS}
        expected = f"trainA, trainB, valA and valB in it, or in its {MIST_FOLDER}"
    elif layout == "her2match":
        folders = {split: (source / "HE_20x" / split, source / "IHC_20x" / split) for split in SPLITS}
        expected = "HE_20x and IHC_20x with the folders train, val and test"
    else:
        assert target is not None
        if not target.is_dir():
            raise MissingError(f"--target: no folder {target}")
        folders = {split: (source / split, target / split) for split in SPLITS}
        if not any(folder.is_dir() for pair in folders.values() for folder in pair):
            return {"": (source, target)}
        expected = ""
    there = {split: pair for split, pair in folders.items() if any(folder.is_dir() for folder in pair)}
    if not there:
        raise MissingError(f"{source} is not laid out as {layout}: expected {expected}")
    return there


def compile_pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern of slides' names. Raises InputError for one that is no regular expression with one group."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(f"--slide-pattern {text!r} is no regular expression ({error})") from None
    if pattern.groups != 1:
        raise InputError(
            f"--slide-pattern {text!r} has {pattern.groups} groups, expected one, such as (.+)_[0-9]+_[0-9]+"
        )
    return pattern


def check_distinct(pairs: list[TilePair]) -> None:
    """Check that no two pairs have one name, as those of two splits or of two sub-folders may. Raises InputError."""
    seen: dict[tuple[str, str], TilePair] = {}
    for pair in pairs:
        other = seen.setdefault((pair.slide, pair.stem), pair)
        if other is not pair:
            remedy = "leave --cohort out, and each split is a cohort of its own"
            if other.split == pair.split:
                remedy = "rename one of them, or give another --slide-pattern, or none where sub-folders are slides"
            raise InputError(f"{other.source} and {pair.source} would have the same name in one cohort; {remedy}")


def _list_images(folder: Path, other: Path, deep: bool) -> dict[str, list[Path]]:
    """Return the images in a folder by their paths below it, without suffix, in natural order; what is no image is named in the log.

    deep: those in sub-folders, too, but for the folder of the other stain, where it is one.
    """
    skipped, images = SkippedEntries(), {}
    real, real_other = (Path(os.path.realpath(each)) for each in (folder, other))
    inner = folder / real_other.relative_to(real) if real in real_other.parents else None
    for place, names in walk_folders(folder, skipped, lambda name: deep):
        if inner is not None and place.is_relative_to(inner):
            continue
        for path in (place / name for name in names):
            if path.suffix.lower() in TILE_SUFFIXES:
                images.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
            else:
                skipped.add("files that are no images", path)
    skipped.report()
    return images


def _match(sources: dict[str, list[Path]], targets: dict[str, list[Path]]) -> Iterator[tuple[str, list, list]]:
    """Yield every name with the files of both folders: those of the first in their order, then those of the second alone."""
    for name in (*sources, *(name for name in targets if name not in sources)):
        yield name, sources.get(name, []), targets.get(name, [])


def _slide_of(name: str, path: Path, pattern: re.Pattern[str] | None) -> str:
    """Return the slide of a file, by its path below the folder, without suffix. Raises InputError where the pattern does not say it."""
    *parents, stem = name.split("/")
    if pattern is None:
        return JOINT.join(parents) or stem
    match = pattern.search(stem)
    slide = match[1] if match else None
    if not slide or not is_plain_name(slide) or is_hidden(slide):
        got = "does not fit" if match is None else f"takes {slide!r} as the slide of"
        raise InputError(
            f"--slide-pattern {pattern.pattern!r} {got} {abbreviate([stem])} ({path}); expected a name in its group"
        )
    return slide
