"""Splits into training and test patches, so that no slide, or no patient, is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from diffusion.data.index.patch_index import index_keys, iterate_names
from diffusion.data.index.tables import read_named_values
from diffusion.data.index.writer import write_index
from diffusion.data.slides.discovery import IMAGE_SUFFIXES
from diffusion.data.slides.reader import SLIDE_SUFFIXES
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write

TCGA_PATIENT = 12  # characters of a TCGA barcode that name the patient: TCGA-02-0001


def slide_name(name: str) -> str:
    """Return the slide of a patch: `<dataset>/<cohort>/single_<size>/<slide>/<column>_<row>.jpeg`."""
    return PurePosixPath(name).parent.name


def cohort_name(name: str) -> str:
    """Return the cohort of a patch, the folder below its data set; "" for a patch without one."""
    parts = PurePosixPath(name).parts
    return parts[1] if len(parts) > 2 else ""


def patient_name(name: str) -> str:
    """Return the patient of a TCGA patch, from the barcode of its slide; the slide of any other."""
    slide = slide_name(name)
    return slide[:TCGA_PATIENT] if slide.startswith("TCGA-") else slide


GROUPINGS: dict[str, Callable[[str], str]] = {"slide": slide_name, "patient": patient_name}


def choose_training_groups(
    groups: Iterable[str],
    share: float,
    seed: int,
    trained: frozenset[str] = frozenset(),
    tested: frozenset[str] = frozenset(),
) -> frozenset[str]:
    """Return the groups that train: `share` of them, at least one, and at least one left out.

    trained, tested: groups that are on a side already, and stay there: what was trained on must not become a test. The
    rest is divided in the order of a seeded hash. share is between 0 and 1.
    Raises InputError for less than two groups, and for groups that are on both sides.
    """
    ordered = sorted(set(groups), key=lambda group: hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=8).digest())
    if len(ordered) < 2:
        raise InputError(f"a split needs at least two slides or patients, got {', '.join(ordered) or 'none'}")
    if both := sorted(trained & tested):
        raise InputError(f"{both[0]} is in the train and in the test index; delete both to split anew")
    free = [group for group in ordered if group not in trained | tested]
    stay = [group for group in ordered if group in trained]
    wanted = min(max(round(share * len(ordered)), 1), len(ordered) - 1) - len(stay)
    return frozenset([*stay, *free[: max(wanted, 0)]])


@dataclass(frozen=True)
class Split:
    """A split that was written: how many patches by side and key, all groups, and how many stay on the side they were on."""

    counts: dict[str, dict[str, int]]
    groups: frozenset[str]
    kept: int


def read_patients(table: Path) -> dict[str, str]:
    """Read which patient each slide is of: a CSV file with the columns slide and patient; a slide's suffix does not count.

    Raises MissingError, or InputError for a file without these columns, and for a slide of two patients.
    """

    def without_suffix(slide: str) -> str:
        return Path(slide).stem if Path(slide).suffix.lower() in SLIDE_SUFFIXES | IMAGE_SUFFIXES else slide

    return read_named_values(table, "slide", "patient", f"no table of patients at {table}", without_suffix)


def group_by_table(patients: Mapping[str, str], table: Path) -> Callable[[str], str]:
    """Return a grouping by a table of patients, which raises InputError for a slide that is not in it."""

    def patient_of(name: str) -> str:
        slide = slide_name(name)
        if slide not in patients:
            raise InputError(f"{table} has no line for slide {slide} of the index; add it")
        return patients[slide]

    return patient_of


def write_split(
    index: Path, share: float, by: Literal["slide", "patient"], seed: int, patients: Path | None = None
) -> Split:
    """Write the train and the test index beside `index`, both or none of them.

    patients: a table that names them, as `read_patients` reads it; None: TCGA's barcodes do, and other slides are groups of
    their own. Raises as choose_training_groups and read_patients do.
    """
    keys = index_keys(index)
    group = GROUPINGS[by] if patients is None else group_by_table(read_patients(patients), patients)
    groups = frozenset(group(name) for key in keys for name in iterate_names(index, key))
    previous = {
        side: _indexed_groups(index.with_name(f"patch_names_{side}.hdf5"), group) & groups for side in ("train", "test")
    }
    training = choose_training_groups(groups, share, seed, previous["train"], previous["test"])
    counts = {}
    with ExitStack() as together:
        for side, trains in {"train": True, "test": False}.items():
            target = together.enter_context(atomic_write(index.with_name(f"patch_names_{side}.hdf5")))
            names = {
                key: (name for name in iterate_names(index, key) if (group(name) in training) is trains) for key in keys
            }
            counts[side] = write_index(target, names)
    return Split(counts, groups, len(previous["train"] | previous["test"]))


def _indexed_groups(index: Path, group: Callable[[str], str]) -> frozenset[str]:
    """Return the groups of the patches in one side of a split made before; none without one."""
    if not index.is_file():
        return frozenset()
    return frozenset(group(name) for key in index_keys(index) for name in iterate_names(index, key))
