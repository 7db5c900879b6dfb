"""Text: files as other systems write them, paths as users type them, names and tables in messages."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusion.utils.errors import InputError, MissingError

# Windows programs begin Unicode files with a byte order mark. UTF-32's begins with UTF-16's, so it is looked for first.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in the encoding that its byte order mark names; line ends become newlines.

    Raises MissingError, or InputError for a file that cannot be read or is in another encoding.
    """
    return "".join(iterate_lines(path))


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not blank, without the space around them. Raises as read_text does."""
    return [line.strip() for line in iterate_lines(path) if line.strip()]


def iterate_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, which may be larger than memory, each with its newline. Raises as read_text does."""
    number, encoding = 0, "utf-8"  # of lines that were read, and how
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        encoding = next((name for mark, name in BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
        with open(path, encoding=encoding) as lines:
            for line in lines:
                number += 1
                yield line
    except FileNotFoundError:
        raise MissingError(f"no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeError as error:
        reason = f"byte 0x{error.object[error.start]:02x}" if isinstance(error, UnicodeDecodeError) else "its content"
        name = encoding.removesuffix("-sig").upper()
        raise InputError(
            f"{path}, line {number + 1} or soon after: {reason} is not {name}; save the file as UTF-8"
        ) from None


def read_json(path: Path, what: str = "JSON object", remedy: str = "") -> dict[str, Any]:
    """Read a JSON object from a file. Raises MissingError, or InputError for any other content.

    what, remedy: what the file should be, and what to do when it is not, for the message.
    """
    advice = f"; {remedy}" if remedy else ""
    try:
        value = json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no {what} ({error}){advice}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is no {what}, but holds a {type(value).__name__}{advice}")
    return value


def expand_path(text: str) -> str:
    """Expand `~`, `~user`, `$NAME` and `${NAME}` in a path, as a shell does in an unquoted word; what is there stays as it is.

    Raises InputError for a variable or a user that is not known: the path would become a folder of that name.
    """
    if os.path.lexists(text):
        return text
    unknown = [name for name in re.findall(r"\$\{?([A-Za-z_]\w*)", text) if name not in os.environ]
    if unknown:
        raise InputError(f"{text}: there is no environment variable {unknown[0]}; set it, or write the path out")
    expanded = os.path.expanduser(os.path.expandvars(text))
    if expanded.startswith("~"):
        raise InputError(f"{text}: there is no user {text.partition('/')[0][1:]}; write the path out, or as ./{text}")
    return expanded


def default_root() -> Path:
    """Return $PIXCELL_ROOT, else the current folder. Raises InputError for a path that cannot be expanded."""
    return Path(expand_path(os.environ.get("PIXCELL_ROOT") or "."))


def is_utf8(name: str) -> bool:
    """Return whether a file name from the system can be written as UTF-8; Python keeps other bytes as lone surrogates."""
    if name.isascii():
        return True
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable_name(name: str | Path) -> str:
    """Return a file name with the bytes that are not UTF-8 as escapes, such as `M\\xfcller`."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def abbreviate(names: Collection[str], limit: int = 3) -> str:
    """Return the first names and how many more there are, as `a, b, c and 17 more`; `none` for no names."""
    first = ", ".join(list(names)[:limit])
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return first + rest or "none"


def format_table(rows: Sequence[Sequence[str]], align: str = "l") -> str:
    """Return rows of cells as text, each column as wide as its widest cell.

    align: `l` or `r` for each column; the last letter counts for the columns that it does not name.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [str.rjust if side == "r" else str.ljust for side in align.ljust(len(widths), align[-1])]
    lines = ("  ".join(put(cell, width) for put, cell, width in zip(pad, row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def format_number(value: float) -> str:
    """Return a number in few letters: 0.25, 12000, 2e-5."""
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def shortest_names(paths: Sequence[Path]) -> list[str]:
    """Return for each path the fewest of its last parts that no other one ends with.

    Raises InputError when one is named twice.
    """
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    names = []
    for own in parts:
        if parts.count(own) > 1:
            raise InputError(f"{Path(*own)} is named more than once; name each run once")
        endings = (own[-n:] for n in range(1, len(own) + 1))
        shortest = next(end for end in endings if sum(other[-len(end) :] == end for other in parts) == 1)
        names.append(Path(*shortest).as_posix())
    return names
