"""Tables that users write: a CSV file that gives each name a value, such as the patient of a slide."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from diffusion.utils.errors import InputError, MissingError


def read_named_values(
    table: Path, name: str, value: str, missing: str, normalise: Callable[[str], str] = str
) -> dict[str, str]:
    """Read a CSV file with two columns: what each name has.

    name, value: of the columns, in messages, too. missing: the message for a file that is not there. normalise: what is looked up
    of a name. Raises MissingError, or InputError for a file without these columns, a line without one of both, and a name with two
    values.
    """
    if not table.is_file():
        raise MissingError(missing)
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {name, value} <= rows[0].keys():
        raise InputError(
            f"{table}: expected a CSV file with the columns {name} and {value}, and a line for each {name}"
        )
    found: dict[str, str] = {}
    for row in rows:
        key, given = (row[name] or "").strip(), (row[value] or "").strip()
        if not key or not given:
            raise InputError(f"{table}: a line has no {name} or no {value}: {row}")
        before = found.setdefault(normalise(key), given)
        if before != given:
            raise InputError(f"{table}: {name} {key} is of {before} and of {given}; keep one of the lines")
    return found
