"""Starts a small training run through `accelerate launch`, harms it, and starts it again.

A fault is inflicted at a random moment after a random number of further steps, some of them while a checkpoint is being
written. What the run did is read from its log and its files only, as a person would.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import server
from conftest import ON_CPU, REPOSITORY, launcher
from runs import settings

from diffusion.config.files import dump_config
from diffusion.formats import CHECKPOINTS_DIR
from diffusion.training.checkpoints.checkpoint import LAST

SAVE_STEPS = 7
PROCESSES = 2
PATIENCE = 120  # seconds for anything to happen


@dataclass
class Attempt:
    """One start of the run, and how it ended."""

    fault: str
    began_at: int  # step
    reached: int  # last step in the log
    code: int
    in_save: bool  # whether a checkpoint was being written at that moment
    output: str


@dataclass
class Driver:
    """A run in `work_dir` on the data below `root`. disk: a small file system that work_dir is on, if there is one."""

    root: Path
    work_dir: Path
    max_steps: int
    seed: int = 0
    disk: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.config = self.work_dir.with_suffix(".py")
        dump_config(
            settings(
                self.root,
                max_steps=self.max_steps,
                save_model_steps=SAVE_STEPS,
                keep_last=3,
                num_workers=1,
                class_dropout_prob=0.3,
            ),
            self.config,
        )

    @property
    def faults(self) -> dict[str, Callable[[psutil.Process], None]]:
        return {
            "killed inside saving": self.kill_in_save,
            "one rank killed": self.kill_rank,
            "newest checkpoint damaged": self.damage_newest,
            "disk full": self.fill_disk,
            "SIGTERM": lambda launched: launched.send_signal(signal.SIGTERM),
            "killed": self.kill_all,
            "SIGUSR1 to one rank": lambda launched: self.random.choice(ranks(launched)).send_signal(signal.SIGUSR1),
        }

    def shuffled(self) -> list[str]:
        """The kinds of faults, one inside a save first, the others in an order of the seed."""
        first, *others = self.faults
        self.random.shuffle(others)
        return [first, *others]

    def run(self, fault: str | None = None) -> Attempt:
        """Start the run, inflict the fault some steps later, and wait for its end; without a fault, for its own."""
        output = self.work_dir.with_suffix(".out")
        output.write_text("")
        trainer = ["train_scripts/train_pixcell.py", self.config, "--work-dir", self.work_dir, "--device", "cpu"]
        process = server.start(
            [*launcher(PROCESSES)[1:], *trainer], REPOSITORY, os.environ | ON_CPU, (output, output), new_session=True
        )
        launched = psutil.Process(process.pid)
        in_save, family = False, [launched]
        try:
            if fault is not None:
                began = self.started(process, output)
                goal = began + self.random.randint(1, 3 * SAVE_STEPS)
                wait_for(lambda: last_step(output) >= goal, process, output)
                time.sleep(self.random.uniform(0, 0.05))
                family += launched.children(recursive=True)
                self.faults[fault](launched)
                in_save = bool(unfinished(self.work_dir))
            process.join(PATIENCE)
            code = process.exitcode
            assert code is not None, f"it goes on:\n{output.read_text(errors='replace')}"
        finally:
            kill(family)
            self.kill_all(launched)
            self.free_disk()
        text = output.read_text(errors="replace")
        attempt = Attempt(fault or "none", first_step(text), last_step(output), code, in_save, text)
        if fault == "newest checkpoint damaged":
            spoil(self.newest())
        self.attempts.append(attempt)
        return attempt

    def started(self, process: BaseProcess, output: Path) -> int:
        wait_for(lambda: first_step(output.read_text(errors="replace")) >= 0, process, output)
        return first_step(output.read_text(errors="replace"))

    def newest(self) -> Path:
        folder = self.work_dir / CHECKPOINTS_DIR
        return folder / json.loads((folder / LAST).read_text())["file"]

    def kill_all(self, launched: psutil.Process) -> None:
        """SIGKILL for the launcher and all that came of it, as the system or a scheduler does."""
        with contextlib.suppress(psutil.NoSuchProcess):
            kill([launched, *launched.children(recursive=True)])

    def kill_rank(self, launched: psutil.Process) -> None:
        self.random.choice(ranks(launched)).kill()

    def kill_in_save(self, launched: psutil.Process) -> None:
        """SIGKILL for all at a moment when a checkpoint is half written."""
        processes = [*launched.children(recursive=True), launched]  # the one that writes before the launcher
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if unfinished(self.work_dir):
                send(processes, signal.SIGSTOP)
                if unfinished(self.work_dir):  # still: small files are written within a millisecond
                    break
                send(processes, signal.SIGCONT)
            time.sleep(0.0005)
        kill(processes)

    def damage_newest(self, launched: psutil.Process) -> None:
        self.kill_all(launched)  # the file is spoilt once nobody writes any more

    def fill_disk(self, launched: psutil.Process) -> None:
        """No room for the next checkpoint: a ballast on a small disk, else a limit on the size of files."""
        if self.disk:
            with open(self.work_dir / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            return
        size = (self.work_dir / "train_log.log").stat().st_size + 50_000  # the log may go on
        for process in ranks(launched):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))

    def free_disk(self) -> None:
        (self.work_dir / "ballast").unlink(missing_ok=True)


def kill(processes: list[psutil.Process]) -> None:
    send(processes, signal.SIGKILL)


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def ranks(launched: psutil.Process) -> list[psutil.Process]:
    """The training processes, without their workers."""
    return launched.children()


def unfinished(work_dir: Path) -> list[str]:
    """Checkpoints that are being written."""
    try:
        return [entry.name for entry in os.scandir(work_dir / CHECKPOINTS_DIR) if entry.name.startswith(".step_")]
    except FileNotFoundError:
        return []


def first_step(text: str) -> int:
    """The step that a start went on from, by its output; -1 before it has said so."""
    match = re.search(r"from step (\d+) to", text)
    return int(match[1]) if match else -1


def last_step(output: Path) -> int:
    steps = re.findall(r"step (\d+)/\d+, epoch", output.read_text(errors="replace"))
    return int(steps[-1]) if steps else -1


def wait_for(happens: Callable[[], bool], process: BaseProcess, output: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert process.exitcode is None, f"ended by itself:\n{output.read_text(errors='replace')}"
        assert time.monotonic() < deadline, f"nothing happens:\n{output.read_text(errors='replace')}"
        time.sleep(0.002)


def spoil(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
