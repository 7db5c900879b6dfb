"""Classes of patches: by the data set, cohort or slide that they are of, or by a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from diffusion.data.index.patch_index import PatchIndex, iterate_names
from diffusion.data.index.split import cohort_name, slide_name
from diffusion.data.index.tables import read_named_values
from diffusion.utils.errors import InputError
from diffusion.utils.text import abbreviate


def dataset_name(name: str) -> str:
    """Return the data set of a patch, its first folder."""
    return name.partition("/")[0]


BY_NAME: dict[str, Callable[[str], str]] = {"dataset": dataset_name, "cohort": cohort_name, "slide": slide_name}


def read_class_table(path: Path) -> dict[str, str]:
    """Read a CSV file with the columns name and class: the class of each data set, cohort, slide or patch.

    Raises MissingError, or InputError for a file without these columns, and for a name of two classes.
    """
    missing = f"no table of classes at {path}; expected {', '.join(BY_NAME)}, or such a CSV file"
    return read_named_values(path, "name", "class", missing)


def look_up_class(classes: Mapping[str, str], name: str) -> str:
    """Return the class of a patch in a table: by its own name, its slide, cohort or data set, in that order; "" for none."""
    keys = (name, slide_name(name), cohort_name(name), dataset_name(name))
    return next((classes[key] for key in keys if key in classes), "")


@dataclass(frozen=True)
class PatchClasses:
    """The classes of an index's patches. names: of the classes, sorted; numbers: (patches,) of int32, -1 for one without class."""

    names: tuple[str, ...]
    numbers: np.ndarray

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the share of each class in the patches that have one."""
        counts = np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.names))
        return tuple((counts / counts.sum()).tolist())


def classify_patches(index: PatchIndex, labels: str, names: Sequence[str] | None = None) -> PatchClasses:
    """Return the classes of all patches of an index, of which every name is read.

    labels: dataset, cohort or slide, or the path of a table. names: the classes to number by, of which others have no number;
    None: all that occur. Raises as read_class_table does, and InputError when no patch has a class.
    """
    class_of = BY_NAME.get(labels) or partial(look_up_class, read_class_table(Path(labels)))
    order: dict[str, int] = {}  # classes as they come, so that of millions of patches no texts are kept
    numbers = np.empty(len(index), dtype=np.int32)
    every = (name for key in index.keys for name in iterate_names(index.path, key))
    for place, label in enumerate(map(class_of, every)):
        numbers[place] = order.setdefault(label, len(order)) if label else -1
    known = tuple(sorted(order)) if names is None else tuple(names)
    number_of = {name: number for number, name in enumerate(known)}
    renumbered = np.array([*(number_of.get(label, -1) for label in order), -1], dtype=np.int32)
    numbers = renumbered[numbers]  # -1 takes the last, which is none
    if not (numbers >= 0).any() and order and names is not None:
        raise InputError(
            f"{index.path}: its classes by {labels} are {abbreviate(sorted(order))}, of which none was trained on; classes that both "
            "indexes have are needed, such as those of a table"
        )
    if not (numbers >= 0).any():
        raise InputError(
            f"{index.path}: no patch has a class by {labels}; name data sets, cohorts, slides or patches in it"
        )
    return PatchClasses(known, numbers)
