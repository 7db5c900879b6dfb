"""The checkpoints of a run, in `checkpoints/` of its work dir:

step_<n>.ckpt  all that training needs to go on         step_<n>.json  its manifest: size, SHA-256, whether weights are finite
last_ema.ckpt  the averaged weights, to use             last.json      the manifest of the one to go on from
left_<i>/      later steps, abandoned by going back            looked_at      the newest step whose samples and validation are done

Checkpoints are torch files of tensors and plain values, which read back without unpickling. Each is written atomically:
a temporary file, flushed to disk and renamed; `last.json` moves only after that. Whatever stops the writer, the checkpoint
that `last.json` names is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion.formats import CHECKPOINT_PATTERN, CHECKPOINTS_DIR, LAST_EMA
from diffusion.utils.content import sha256_file
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write, flush_to_disk
from diffusion.utils.weights import read_torch_file

log = logging.getLogger(__name__)

LAST = "last.json"
EVALUATED_FILE = "looked_at"
ABANDONED_PREFIX = "left_"
NO_ORIGIN = {"named": None}  # by --resume-from
SNAPSHOTS = "power_ema"  # folder of averages for later choice
STATE_KEYS = frozenset(  # what makes a checkpoint a state to go on from
    (
        *("model", "ema", "power_ema", "optimizer", "optimizer_type", "lr_schedule", "scaler", "step"),
        *("position", "skipped", "skipped_in_a_row", "bad_items", "config", "data", "processes"),
    )
)


def checkpoint_path(work_dir: Path, step: int) -> Path:
    """Return where a work dir's checkpoint of a step is."""
    return work_dir / CHECKPOINTS_DIR / f"step_{step:08d}.ckpt"


def manifest_path(checkpoint: Path) -> Path:
    """Return where a checkpoint's manifest is."""
    return checkpoint.with_suffix(".json")


def write_checkpoint(state: dict[str, Any], work_dir: Path, export: Mapping[str, Any]) -> Path:
    """Write a run's state, and `export`, its averaged weights for use. `mark_latest` then makes it the last. Raises OSError, InputError."""
    path = checkpoint_path(work_dir, state["step"])
    save_file(state, path, with_manifest=True)
    save_file(dict(export), path.with_name(LAST_EMA))
    return path


def save_file(content: Any, path: Path, with_manifest: bool = False) -> None:
    """Save with torch atomically (temporary file, flushed to disk, renamed): a reader sees the old file or the new one whole.

    Raises OSError; InputError when the disk, without a word, took less than was written.
    """
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            counted = _HashingFile(file)
            target: Any = counted if with_manifest else file  # torch.save is typed for io's files alone
            torch.save(content, target)
            file.flush()
            os.fsync(file.fileno())
        if with_manifest:  # before the checkpoint, so that there is none without
            if temporary.stat().st_size != counted.size:
                raise InputError(f"{temporary} has {temporary.stat().st_size} bytes of {counted.size}; check the disk")
            manifest = {"file": path.name, "step": content["step"], "bytes": counted.size, "sha256": counted.digest}
            manifest |= {"finite": all(bool(tensor.isfinite().all()) for tensor in content["model"].values())}
            _write_json(manifest, manifest_path(path))
    flush_to_disk(path.parent)


def mark_latest(path: Path, named: Mapping[str, str | None]) -> None:
    """Mark this checkpoint as the one to resume when the run is started again.

    named: which checkpoint --resume-from had named when the run began to come from there, by path and by content.
    """
    _write_json({**json.loads(manifest_path(path).read_text()), **named}, path.with_name(LAST))
    flush_to_disk(path.parent)


def content_hash(checkpoint: Path) -> str:
    """Return the SHA-256 of a checkpoint: its manifest's, else counted."""
    manifest = _read_json(manifest_path(checkpoint))
    return manifest["sha256"] if manifest else sha256_file(checkpoint)


def read_latest(work_dir: Path) -> dict[str, Any]:
    """Return what last.json says; empty without one."""
    return _read_json(work_dir / CHECKPOINTS_DIR / LAST) or {}


def last_evaluated_step(work_dir: Path) -> int | None:
    """Return the newest step whose samples and validation are done; None before the first, and where that cannot be read."""
    path = work_dir / CHECKPOINTS_DIR / EVALUATED_FILE
    text = path.read_text(errors="replace").strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None


def archive_abandoned(folder: Path, after: int) -> None:
    """Move checkpoints and snapshots of later steps, which are abandoned, into `left_<i>` of a checkpoints folder.

    So they are neither resumed, nor rotated, nor lost.
    """
    abandoned = [place for step, place in checkpoints(folder).items() if step > after]
    abandoned += [manifest_path(place) for place in abandoned if manifest_path(place).exists()]
    snapshots = [place for place in folder.glob(f"{SNAPSHOTS}/step_*_*.ckpt") if int(place.name.split("_")[1]) > after]
    if not abandoned + snapshots:
        return
    number = 1 + max(
        (int(place.name.removeprefix(ABANDONED_PREFIX)) for place in folder.glob(f"{ABANDONED_PREFIX}*")), default=0
    )
    for place in abandoned + snapshots:
        archived = folder / f"{ABANDONED_PREFIX}{number}" / place.relative_to(folder)
        archived.parent.mkdir(parents=True, exist_ok=True)
        place.rename(archived)
    log.warning(
        "what the run had saved beyond the checkpoint named is in %s now", folder / f"{ABANDONED_PREFIX}{number}"
    )


def rotate(work_dir: Path, step: int, keep_last: int | None, keep_every: int | None) -> None:
    """After the save of `step`: remove checkpoints before it, but for the newest `keep_last` and multiples of `keep_every`.

    keep_last counts only those that are whole and have finite weights; None keeps all. The one just saved stays anyway.
    """
    if keep_last is None:
        return
    until_now = [path for number, path in sorted(checkpoints(work_dir).items()) if number <= step]
    kept = [path for path in until_now if _is_resumable(path)][-keep_last:]
    for path in until_now:
        number = step_of(path)
        if path not in kept and number != step and not (keep_every and number and number % keep_every == 0):
            path.unlink()
            manifest_path(path).unlink(missing_ok=True)


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a work dir, or in its checkpoints folder, by step."""
    paths = [path for place in (folder, folder / CHECKPOINTS_DIR) for path in place.glob(CHECKPOINT_PATTERN)]
    return {step_of(path): path for path in paths if re.fullmatch(r"step_\d+\.ckpt", path.name)}


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's file name."""
    return int(path.stem.removeprefix("step_"))


def find_checkpoint(resume_from: str, work_dir: Path) -> Path | None:
    """Find what --resume-from names: a file, a folder (its newest whole one), or `auto`, that of the work dir; None without any.

    Raises MissingError when a file or folder named is not there or holds no checkpoint, InputError for a damaged one.
    """
    if resume_from == "auto":
        return newest_valid(work_dir)
    path = Path(resume_from)
    if path.is_file():
        if manifest_path(path).is_file() and (complaint := find_damage(path)):
            raise InputError(f"{path} is damaged: {complaint}; --resume-from {path.parent} takes the newest whole one")
        return path
    if not path.is_dir():
        raise MissingError(f"no checkpoint at {path}; name a file, a folder, or auto")
    newest = newest_valid(path)
    if newest is None:
        raise MissingError(f"no step_<n>.ckpt in {path} or {path / CHECKPOINTS_DIR}")
    return newest


def newest_valid(folder: Path) -> Path | None:
    """Find the checkpoint that `last.json` names when it is valid, else the newest valid one before; None when there is none.

    Damaged ones are named in the log. Raises InputError when all are damaged.
    """
    present = checkpoints(folder)
    last = next(
        (_read_json(place / LAST) for place in (folder, folder / CHECKPOINTS_DIR) if (place / LAST).is_file()), None
    )
    at_most = last["step"] if last else max(present, default=0)
    if last and last["step"] not in present:
        log.warning("%s, where %s says the run is, is gone; looking at the one before", last["file"], LAST)
    candidates = [present[step] for step in sorted(present, reverse=True) if step <= at_most]
    for path in candidates:
        complaint = find_damage(path) or (None if _is_finite(path) else "its weights are not all finite")
        if complaint is None:
            return path
        log.warning("%s is damaged: %s; looking at the one before", path, complaint)
    if present:
        raise InputError(
            f"none of the {len(present)} checkpoints of {folder} is whole, by the manifests beside them; name one with "
            "--resume-from FILE, or start from its weights with --load-from FILE in a new --workdir"
        )
    return None


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint by its manifest; None when it is whole. Reads all of it: a second or two a gigabyte."""
    manifest = _read_json(manifest_path(path))
    if manifest is None:
        return f"no manifest {manifest_path(path).name}"
    if path.stat().st_size != manifest["bytes"]:
        return f"{path.stat().st_size} bytes instead of {manifest['bytes']}"
    if sha256_file(path) != manifest["sha256"]:
        return "its SHA-256 is not that of its manifest"
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a training checkpoint on the CPU. Raises MissingError, InputError."""
    content = read_torch_file(path)
    if not isinstance(content, dict) or not content.keys() >= STATE_KEYS:
        raise MissingError(
            f"{path} holds weights but no state of a training run, or that of another version; "
            "use --load-from to start from its weights"
        )
    return content


class _HashingFile:
    """A file that torch writes to, with the SHA-256 of what it was given."""

    def __init__(self, file):
        self.file, self.size, self._sha256 = file, 0, hashlib.sha256()

    def write(self, part) -> int:
        """Write and hash."""
        self._sha256.update(part)
        self.size += len(part)
        return self.file.write(part)

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all that was written."""
        return self._sha256.hexdigest()


def _is_resumable(path: Path) -> bool:
    """Tell whether a checkpoint can be resumed, as far as its size and its manifest show."""
    manifest = _read_json(manifest_path(path))
    return manifest is not None and path.stat().st_size == manifest["bytes"] and _is_finite(path)


def _is_finite(path: Path) -> bool:
    return (_read_json(manifest_path(path)) or {}).get("finite", True)


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a manifest; None when there is none, or it is damaged."""
    try:
        manifest = json.loads(path.read_text())
        return manifest if {"file", "step", "bytes", "sha256"} <= manifest.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _write_json(content: dict[str, Any], path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n")
        flush_to_disk(temporary)
