"""Files of features that other programs computed. Letters: N rows, D width of the embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffusion.evaluation.sets.cache import READ_ERRORS
from diffusion.evaluation.sets.features import PART_ROWS, Features, Row
from diffusion.utils.errors import InputError, MissingError

FEATURE_SUFFIXES = (".npy", ".npz")


def read_feature_file(path: Path) -> Features:
    """Open a file of features: an .npy file of numbers (N, D), or an .npz file with such numbers as `features`.

    An .npz file may have `names` (N,), by which rows are paired; else they are paired by their numbers.
    Raises MissingError, or InputError for a file that is damaged, of another shape, or holds NaN or infinite values.
    """
    if not path.is_file():
        raise MissingError(f"no file of features at {path}")
    try:
        content = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        if isinstance(content, np.ndarray) is not (path.suffix == ".npy"):
            raise ValueError(f"its content is of another kind than {path.suffix}")
        values = content if path.suffix == ".npy" else content["features"]
        named = path.suffix == ".npz" and "names" in content
        names = content["names"].tolist() if named else list(range(len(values)))
    except READ_ERRORS as error:
        why = "not of numbers alone" if "pickle" in str(error) else str(error).splitlines()[0]
        raise InputError(f"{path} is not a whole file of features ({why})") from error
    if values.ndim != 2 or values.dtype.kind != "f" or not len(values):
        raise InputError(f"{path} holds {values.dtype} {values.shape}, expected floating-point numbers (N, D)")
    if len(names) != len(values) or len(set(names)) != len(names):
        raise InputError(f"{path} has {len(set(names))} different names for {len(values)} rows; expected one each")
    starts = range(0, len(values), PART_ROWS)

    def part(first: int) -> Callable[[], np.ndarray]:
        return lambda: np.array(values[first : first + PART_ROWS], dtype=np.float32)

    for first in starts:
        if not np.isfinite(part(first)()).all():
            raise InputError(
                f"{path} holds numbers that are not finite, in rows {first} to {min(first + PART_ROWS, len(values)) - 1}"
            )
    lengths = [min(PART_ROWS, len(values) - first) for first in starts]
    rows = [Row(str(name)) for name in names]
    return Features(rows, values.shape[1], [part(first) for first in starts], lengths, path.name)
