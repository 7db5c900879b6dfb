"""Text and JSON files as other systems write them, paths as users type them, and lists of names in messages."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffusion.errors import InputError, MissingError

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
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"no file {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not {encoding.removesuffix('-sig').upper()}; "
            "save the file as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that are not blank, without the space around them. Raises as read_text does."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON file whose top level is of a kind. Raises MissingError, or InputError for any other content."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, kind):
        raise InputError(f"{path} holds a JSON {type(value).__name__}: expected a {kind.__name__}")
    return value


def expand_path(text: str) -> str:
    """Expand `~`, `~user`, `$NAME` and `${NAME}` in a path, as a shell does in an unquoted word.

    Raises InputError for a variable or a user that is not known: the path would become a folder of that name.
    """
    unknown = [name for name in re.findall(r"\$\{?([A-Za-z_]\w*)", text) if name not in os.environ]
    if unknown:
        raise InputError(f"{text}: there is no environment variable {unknown[0]}; set it, or write the path out")
    expanded = os.path.expanduser(os.path.expandvars(text))
    if expanded.startswith("~") and not Path(text).exists():
        raise InputError(f"{text}: there is no user {text.partition('/')[0][1:]}; write the path out, or as ./{text}")
    return expanded


def is_utf8(name: str) -> bool:
    """Tell whether a file name from the system can be written as UTF-8; Python keeps other bytes as lone surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str | Path) -> str:
    """Return a file name with the bytes that are not UTF-8 as escapes, such as `M\\xfcller`."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def abbreviate(names: Collection[str], limit: int = 3) -> str:
    """Return `a, b, c and 17 more`; `none` for no names."""
    first = ", ".join(list(names)[:limit])
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return first + rest or "none"
