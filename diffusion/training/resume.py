"""Which state a run resumes from, and whether it may."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion.formats import CHECKPOINTS_DIR
from diffusion.training.checkpoints.checkpoint import (
    LAST,
    checkpoints,
    content_hash,
    find_checkpoint,
    load_checkpoint,
    read_latest,
)
from diffusion.training.plan import Plan
from diffusion.utils.errors import InputError
from diffusion.utils.weights import restore_frozen

log = logging.getLogger(__name__)

FIRST_TASK = "denoising"  # of checkpoints that were written when there was no other


def choose_checkpoint(
    resume_from: str | None, load_from: str | None, work_dir: Path, fresh: bool
) -> tuple[Path | None, bool]:
    """Choose what to go on from, or None for a new run; and whether it is one that the run itself has come to.

    A checkpoint that is named is followed once: the same command then goes on with what came of it.
    Raises InputError rather than write a fresh run over one that is there.
    """
    named, present = explicit_checkpoint(resume_from), checkpoints(work_dir)
    if fresh and named is not None:
        raise InputError(f"--fresh begins anew, --resume-from {resume_from} does not; give one of them")
    if named is not None and load_from is not None:
        raise InputError(
            f"resume_from {resume_from} goes on with a run, load_from {load_from} begins one; give one of them"
        )
    if fresh and present:
        raise InputError(
            f"{work_dir} already holds a run, at step {max(present)}; without --fresh it goes on, or name another --workdir"
        )
    if named is not None:
        assert resume_from is not None  # else it names nothing
        if not (present and _is_same_origin(resume_from, work_dir)):
            return find_checkpoint(resume_from, work_dir), False
        message = "the run was begun at %s, and goes on from where it has come; remove %s to begin there anew"
        log.warning(message, named, work_dir / CHECKPOINTS_DIR / LAST)
    return find_checkpoint("auto", work_dir), True


def open_checkpoint(path: Path, task: str, optimizer: str) -> dict[str, Any]:
    """Read the state to resume, with its frozen weights. Raises InputError for that of another task or optimizer."""
    state = load_checkpoint(path)
    saved_task = state.get("task", FIRST_TASK)
    if saved_task != task:
        raise InputError(f"{path} is of a run that trains {saved_task}, the config trains {task}")
    if state["optimizer_type"] != optimizer:
        raise InputError(f"{path} is of a run with {state['optimizer_type']}, the config has {optimizer}")
    return restore_frozen(state, path)


def explicit_checkpoint(resume_from: str | None) -> str | None:
    """Return what `resume_from` names, as an absolute path; None for `auto`."""
    return None if resume_from in (None, "auto") else str(Path(resume_from).resolve())


def resume_origin(
    resume_from: str | None, checkpoint: Path | None, own: bool, last: Mapping[str, Any]
) -> dict[str, str | None]:
    """Return what a run's newest save is to say of the checkpoint that it was begun from: its path, and its content's hash.

    last: what the save before says, which holds when the run goes on from its `own`.
    """
    path = explicit_checkpoint(resume_from)
    content = last.get("named_content") if own or path is None or checkpoint is None else content_hash(checkpoint)
    return {"named": path or last.get("named"), "named_content": content}


def _is_same_origin(resume_from: str, work_dir: Path) -> bool:
    """Tell whether a run was begun from the checkpoint that resume_from names, even if that has been moved since."""
    last = read_latest(work_dir)
    if explicit_checkpoint(resume_from) == last.get("named"):
        return True
    content = last.get("named_content")
    if content is None:
        return False
    checkpoint = find_checkpoint(resume_from, work_dir)
    return checkpoint is not None and content_hash(checkpoint) == content


def check_same_run(
    saved: Mapping[str, Any], *, seed: int, accumulation: int, data: Mapping[str, Any], plan: Plan, accept: bool
) -> None:
    """Compare what decides which samples come next with what the run was begun with.

    accumulation: backward passes an optimizer step. data: the data set's identity.
    Raises InputError for the first difference, unless changes are accepted: then the log tells of them.
    """
    saved_config, processes = saved["config"], len(saved["processes"])
    batch = saved_config["train_batch_size"] * saved_config["gradient_accumulation_steps"] * processes
    samples_per_pass = plan.global_batch // accumulation
    fits = batch % samples_per_pass == 0
    keep_batch = f"set gradient_accumulation_steps={batch // samples_per_pass}" if fits else "change train_batch_size"
    pairs = {
        "a global batch": (batch, plan.global_batch, f"{keep_batch} to keep it"),
        "seed": (saved_config["seed"], seed, f"set seed={saved_config['seed']} to keep it"),
        "data": (saved["data"], dict(data), "name the data of before"),
    }
    for name, (before, now, advice) in pairs.items():
        if before == now:
            continue
        if not accept:
            raise InputError(
                f"the run was begun with {name} of {before}, and this is {now}; {advice}, "
                "or go on with the new one by --accept-changes"
            )
        log.warning("%s changed from %s to %s: from here on another sequence of samples", name, before, now)
