"""Stages: trainings one after the other, each from the weights of the one before, and the record of those finished."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusion.config.files import load_config
from diffusion.config.settings import Config
from diffusion.formats import CHECKPOINT_PATTERN, CHECKPOINTS_DIR, LAST_WEIGHTS
from diffusion.training.parallel.preemption import CODE_FILE
from diffusion.utils.assets import PACKAGES
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.text import read_json

RECORD, LOCK = "stages.json", ".progressive.lock"
GRACE_SECONDS = 600  # in which processes that the launcher left behind have to save and end


class Stage:
    """One config, checked, its work dir, and what the record of finished stages has of it."""

    def __init__(self, config: Path, folder: Path, before: Stage | None = None):
        self.config, self.folder, self.before = config, folder / config.stem, before
        settings = load_config(config)  # a mistake in the last stage shows now, not days later
        assert isinstance(settings, Config)  # stages are of denoising alone, as load_config checks
        self.steps, self.size = settings.max_steps, settings.image_size
        self.settings = json.loads(json.dumps(asdict(settings)))
        if before is not None and before.size > self.size:
            raise InputError(
                f"{before.config} is of {before.size} pixels, {config} of {self.size}: expected the smaller first"
            )

    @property
    def weights(self) -> Path:
        """The averaged weights that the stage ends with."""
        return self.folder / LAST_WEIGHTS

    @property
    def entry(self) -> dict[str, Any]:
        """What the record keeps of a finished stage."""
        return {"after": self.before.config.stem if self.before else None, "settings": self.settings}

    def changes(self, done: dict[str, Any]) -> list[str]:
        """Return what differs from when the stage was finished; keys that only one of both versions has do not count."""
        before = done[self.config.stem]
        keys = self.settings.keys() & before["settings"].keys()
        changed = [key for key in sorted(keys) if self.settings[key] != before["settings"][key]]
        return changed + (["the stage before it"] if before["after"] != self.entry["after"] else [])

    def state(self, done: dict[str, Any]) -> str:
        """Return `done`, `at step N`, or `to come`."""
        if self.config.stem in done:
            changes = self.changes(done)
            return f"done, before a change of {', '.join(changes)}" if changes else "done"
        saved = sorted(self.folder.glob(f"{CHECKPOINTS_DIR}/{CHECKPOINT_PATTERN}"))
        if not saved:
            return "to come"
        return f"at step {int(saved[-1].stem.removeprefix('step_'))}{f' of {self.steps}' if self.steps else ''}"

    def check(self, done: dict[str, Any]) -> None:
        """Check that a finished stage is still the same, and its weights are there. Raises InputError."""
        if self.config.stem not in done:
            return
        retrain = f"delete {self.folder} with its entry in {self.folder.parent / RECORD} to train it again"
        changes = self.changes(done)
        if changes:
            raise InputError(
                f"{self.config}: {', '.join(changes)} changed after its stage was finished; undo that, or {retrain}"
            )
        if not self.weights.is_file():
            raise InputError(f"{self.weights} is gone; {retrain}")


def open_stages(configs: Sequence[Path], folder: Path) -> list[Stage]:
    """Return the stages of these configs, in their order, whose work dirs are in a folder. Raises InputError."""
    stages: list[Stage] = []
    for config in configs:
        stages.append(Stage(config, folder, stages[-1] if stages else None))
    names = [stage.config.stem for stage in stages]
    if len(set(names)) < len(names):
        raise InputError(f"the configs {', '.join(names)} must have names of their own: their work dirs are named so")
    return stages


def check_order(stages: Sequence[Stage], i: int, done: dict[str, Any]) -> None:
    """Check that no stage after an unfinished one has begun, from other weights. Raises InputError."""
    began_early = [later for later in stages[i + 1 :] if later.state(done) != "to come"]
    if began_early:
        folder = stages[i].folder
        raise InputError(
            f"{began_early[0].folder} began from other weights than {folder} will have; delete it, "
            f"and its line in {folder.parent / RECORD}, to train it again"
        )


def read_record(path: Path) -> dict[str, Any]:
    """Read the finished stages, by name, with their settings and the stage before. Raises InputError."""
    if not path.is_file():
        return {}
    record = read_json(path, "record of stages", "delete it")
    for name, entry in record.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("settings"), dict) or "after" not in entry:
            raise InputError(f"{path} is no record of stages ({name} has no settings); delete it")
    return record


def write_record(path: Path, done: dict[str, Any]) -> None:
    """Write the finished stages."""
    atomic_write_bytes(path, (json.dumps(done, indent=1) + "\n").encode())


def trainer_command(stage: Stage, options: dict[str, Any], launch: str = "", further: str = "") -> list[str]:
    """Return the command that launches the trainer; an existing run resumes, a new one starts from the weights.

    options: of `pixcell train`, those that are None left out. launch: arguments of accelerate launch; further: more
    options, both as one text.
    """
    start = [sys.executable, "-m", "accelerate.commands.launch", *shlex.split(launch)]
    train = ["-m", "pixcell", "train", str(stage.config), "--workdir", str(stage.folder)]
    for option, value in options.items():
        train += [option, str(value)] if value is not None else []
    return [*start, *train, *shlex.split(further)]


def run_trainer(command: list[str]) -> int:
    """Run the trainer to its end, and return its own exit code, or its launcher's.

    A signal to stop goes to all of its processes, which are waited for: accelerate's launcher alone would leave the trainer
    behind, and the next run would find the work dir locked.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "code"
        variables = {CODE_FILE: str(own), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS)}
        code = run_to_end(command, variables | clone_path())
        return int(own.read_text()) if own.is_file() else code


def run_to_end(command: list[str], environment: dict[str, str]) -> int:
    """Run a command until all of its processes have ended, and return its exit code; any signal to stop becomes SIGTERM."""
    child = subprocess.Popen(command, start_new_session=True, env={**os.environ, **environment})
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: os.killpg(child.pid, signal.SIGTERM)) for number in numbers}
    try:
        code = child.wait()
        with contextlib.suppress(OSError):  # until no process of the group is left
            for i in range(GRACE_SECONDS * 10):
                os.killpg(child.pid, signal.SIGTERM if i else 0)
                time.sleep(0.1)
            os.killpg(child.pid, signal.SIGKILL)
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clone_path() -> dict[str, str]:
    """Return the variable with which Python finds a clone's packages from any folder; nothing where they are installed."""
    if not (PACKAGES / "pyproject.toml").is_file():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH"))))}
