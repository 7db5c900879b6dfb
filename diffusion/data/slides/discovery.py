"""Finding the slides and images in the files, folders and lists that a user names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffusion.data.slides.patches import is_mask
from diffusion.data.slides.reader import SLIDE_SUFFIXES
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.folders import SkippedEntries, walk_folders
from diffusion.utils.text import expand_path, is_utf8, printable_name, read_lines

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp"))
UNREADABLE_SUFFIXES = (  # of slides that are named when they are left out; not of those that the reader has learned
    frozenset((".isyntax", ".qptiff", ".vsi", ".ets", ".lif", ".jp2", ".kfb", ".sdpc", ".btf", ".zip", ".gz", ".part"))
    - SLIDE_SUFFIXES
)


@dataclass
class FoundSlides:
    """The slides and images that a user names; refused: those that cannot be cut beside the others, and why."""

    paths: list[Path] = field(default_factory=list)
    refused: dict[Path, str] = field(default_factory=dict)


def find_slides(paths: Iterable[Path]) -> FoundSlides:
    """Find the files named, those that .txt lists name, and the slides and images in and below the folders named.

    In natural order. Of a folder, an image with the name of a slide beside it is the slide's label or overview, and left out; of
    other files of one name the first is taken and the others refused. Raises MissingError for a path that is not there and a
    folder or list without slides, InputError for a list that cannot be read.
    """
    skipped, found = SkippedEntries(), FoundSlides()
    taken: dict[str, Path] = {}
    for path in dict.fromkeys(slide for place in paths for slide in _iterate_slides(place, skipped)):
        if not is_utf8(str(path)):
            found.refused[path] = f"{printable_name(path)}: this name is not UTF-8; rename it"
        elif taken.setdefault(path.stem, path) != path:
            found.refused[path] = (
                f"{path} would share the folder {path.stem} with {taken[path.stem]}; extract it to another cohort"
            )
    skipped.report()
    found.paths = list(taken.values())
    return found


def name_slides(paths: Iterable[Path]) -> tuple[dict[str, Path], dict[Path, str]]:
    """Return slides and images by their names as `list_slides` has them, and those refused; of two with one name the second is refused."""
    listed, refused = list_slides(paths)
    named: dict[str, Path] = {}
    for name, path in listed:
        if named.setdefault(name, path) != path:
            refused[path] = f"{path} would be the same file of the result as {named[name]}; take another --out for it"
    return named, refused


def find_pictures(paths: Sequence[Path], out: Path) -> tuple[dict[str, Path], dict[Path, str]]:
    """Return the pictures that are named, by the names of their results, and files that are refused, with the reasons.

    What is below `out` and in a folder that is named is left out: an earlier call has made it. Raises InputError for a picture that would
    be replaced by its result, and where nothing is left.
    """
    found, refused = name_slides(paths)
    inside = out.resolve()
    found = {name: path for name, path in found.items() if path in paths or inside not in path.resolve().parents}
    if replaced := [path for path in found.values() if path.resolve().parent == inside]:
        raise InputError(f"--out {out}: the result would be where {replaced[0].name} is; name another folder")
    if not found and not refused:
        raise InputError(f"--out {out}: all that is named is below it; name another folder")
    return found, refused


def list_slides(paths: Iterable[Path]) -> tuple[list[tuple[str, Path]], dict[Path, str]]:
    """Return slides and images, found as find_slides does, with their paths below the folder named, without suffix; and those refused.

    A file that is named itself has its name. Masks beside patches are left out. Raises as find_slides does.
    """
    skipped = SkippedEntries()
    listed: list[tuple[str, Path]] = []
    refused: dict[Path, str] = {}
    for place in paths:
        found = list(_iterate_slides(place, skipped))
        stems: dict[Path, set[str]] = {}
        for path in found:
            stems.setdefault(path.parent, set()).add(path.stem)
        for path in found:
            if is_mask(path.stem, stems[path.parent]):
                continue
            name = (path.relative_to(place) if place.is_dir() else Path(path.name)).with_suffix("").as_posix()
            if is_utf8(str(path)):
                listed.append((name, path))
            else:
                refused[path] = f"{printable_name(path)}: this name is not UTF-8; rename it"
    skipped.report()
    return listed, refused


def _iterate_slides(path: Path, skipped: SkippedEntries) -> Iterator[Path]:
    if path.suffix.lower() == ".txt" and path.is_file():
        yield from _iterate_list(path, skipped)
    elif path.is_file():
        yield path
    elif path.is_dir():
        yield from _iterate_folder(path, skipped)
    else:
        raise MissingError(f"nothing at {path}")


def _iterate_folder(root: Path, skipped: SkippedEntries) -> Iterator[Path]:
    known, empty = SLIDE_SUFFIXES | IMAGE_SUFFIXES, True
    for folder, names in walk_folders(root, skipped):
        for name in _filter_slide_files(folder, names, skipped):
            if Path(name).suffix.lower() in known:
                empty = False
                yield folder / name
    if empty:
        skipped.report()
        raise MissingError(f"no slide or image in {root}; known are {', '.join(sorted(known))}")


def _filter_slide_files(folder: Path, names: list[str], skipped: SkippedEntries) -> list[str]:
    """Return those of the files in one folder that stand for a slide.

    A DICOM slide has a file for each of its levels, of which OpenSlide finds the others; JPEGs beside a .vms or .vmu are its
    tiles; an image with the name of a slide is its label or overview.
    """
    kinds = {name: Path(name).suffix.lower() for name in names}
    dicom = sorted(name for name in names if kinds[name] == ".dcm")[1:]
    tiles = {".jpg", ".jpeg"} if {".vms", ".vmu"} & set(kinds.values()) else set()
    slides = {Path(name).stem for name in names if kinds[name] in SLIDE_SUFFIXES}
    beside = [name for name in names if kinds[name] in IMAGE_SUFFIXES - tiles and Path(name).stem in slides]
    for name in dicom:
        skipped.add("DICOM files taken as levels of the first in their folder", folder / name)
    for name in beside:
        skipped.add("images with the name of a slide beside them", folder / name)
    for name in names:
        if kinds[name] in UNREADABLE_SUFFIXES:
            skipped.add("files that no reader opens", folder / name)
    return [name for name in names if name not in dicom and name not in beside and kinds[name] not in tiles]


def _iterate_list(file: Path, skipped: SkippedEntries) -> Iterator[Path]:
    """Yield the paths in a text file, one a line, relative to the current folder; each is a slide, an image or a folder of them."""
    lines = [line for line in read_lines(file) if not line.startswith("#")]
    if not lines:
        raise MissingError(f"{file} lists nothing; expected one path a line")
    for line in lines:
        path = Path(expand_path(line) if line.startswith(("~", "$")) else line)
        if path.is_dir():
            yield from _iterate_folder(path, skipped)
        else:
            yield path
