"""The names that go into an index: of the patches on the disk, or of lists that a user has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from diffusion.data.index.names import name_fault
from diffusion.data.slides.patches import PATCH_SUFFIXES, list_patch_sizes, list_patches
from diffusion.formats import METADATA_DIR
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.folders import is_hidden, natural_key
from diffusion.utils.text import iterate_lines


def collect_names(
    patches: Path, datasets: Sequence[str] | None, size: int, lists: Sequence[Path] = ()
) -> dict[str, Iterator[str]]:
    """Return the names of each data set's patches by its key; they are read as they are asked for: there may be millions.

    datasets: None for all that are in `patches`, the folder of all data sets. lists: text files to take the names from.
    Raises MissingError where there is no patch of that size, or none of a data set named; InputError as read_name_lists does.
    """
    found = {}
    for dataset in datasets or list_datasets(patches):
        names = read_name_lists(lists, dataset) if lists else scan_patches(patches, dataset, size, bool(datasets))
        first = next(names, None)
        if first is not None:
            found[f"{dataset}_{size}"] = chain([first], names)
    if not found:
        raise no_patches_error(patches, size)
    return found


def list_datasets(patches: Path) -> list[str]:
    """List every data set in ROOT/patches. Raises MissingError when there is none."""
    names = [folder.name for folder in patches.iterdir() if folder.is_dir()] if patches.is_dir() else []
    names = [name for name in names if name != METADATA_DIR and not is_hidden(name)]
    if not names:
        raise MissingError(f"no data set in {patches}; make patches with pixcell patches, or set --root")
    return sorted(names, key=natural_key)


def scan_patches(patches: Path, dataset: str, size: int, named: bool) -> Iterator[str]:
    """Yield the names of a data set's patches. One without patches is an error where the user named it, else skipped."""
    empty = True
    for name in list_patches(patches, dataset, size):
        empty = False
        yield name
    if empty and named:
        raise no_patches_error(patches / dataset, size)


def no_patches_error(folder: Path, size: int) -> MissingError:
    """Return the error for a folder without patches of a size, which names the sizes that there are."""
    advice = "make patches with pixcell patches"
    if sizes := list_patch_sizes(folder):
        advice = f"there are patches of {', '.join(map(str, sizes))} pixels, so set --size"
    return MissingError(f"no single_{size}/ with images ({', '.join(PATCH_SUFFIXES)}) in {folder}; {advice}")


def read_name_lists(files: Iterable[Path], dataset: str) -> Iterator[str]:
    """Yield the names in text files, one a line. Raises MissingError, or InputError for a line that is no patch of the data set."""
    for file in files:
        if not file.is_file():
            raise MissingError(f"--names: no file {file}")
        for number, line in enumerate(iterate_lines(file), start=1):
            name = line.strip()
            if name and (not name.startswith(f"{dataset}/") or name_fault(name)):
                raise InputError(f"{file}, line {number}: {name!r} is no path {dataset}/... below ROOT/patches")
            if name:
                yield name
