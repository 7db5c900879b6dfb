"""Train stage after stage, each from the weights of the one before, and go on where a stop left it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import output_folder, run, tool_parser
from diffusion.config.files import load_config
from diffusion.config.settings import Config
from diffusion.formats import CHECKPOINT_PATTERN, CHECKPOINTS_DIR, LAST_WEIGHTS
from diffusion.training.parallel.preemption import CODE_FILE, EXIT_CODE
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.locks import file_lock
from diffusion.utils.text import read_json

TRAINER = Path(__file__).resolve().parents[1] / "train_scripts" / "train_pixcell.py"
RECORD = "stages.json"
GRACE_SECONDS = 600  # in which processes that the launcher left behind have to save and end
EXAMPLES = """  python tools/progressive.py configs/pan_cancer/pixart_20x_256.py configs/pan_cancer/pixart_20x_512_pos_embed.py \\
      configs/pan_cancer/pixart_20x_1024_pos_embed.py --work-dir output/pixcell --launch "--multi_gpu --num_processes 8"
  python tools/progressive.py configs/demo/demo_256.py configs/demo/demo_512.py configs/demo/demo_1024.py --work-dir W
  python tools/progressive.py configs/demo/demo_256.py configs/demo/demo_512.py --work-dir W --status"""


def parse_arguments() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES, seed=None, root_of_run=True)
    add = parser.add_argument
    add("configs", type=Path, nargs="+", help="config files of the stages, in their order")
    add("--work-dir", type=output_folder, required=True, help="gets a work dir for each stage, named after its config")
    add("--load-from", help="weights that the first stage starts from [its config's]")
    add("--launch", default="", metavar="ARGS", help="arguments of accelerate launch, in quotes")
    add(
        "--train",
        default="",
        metavar="ARGS",
        help="further arguments of the trainer, in quotes, such as '--batch-size 64'",
    )
    add("--status", action="store_true", help="say where it is, train nothing")
    return parser.parse_args()


class Stage:
    """One config, checked, its work dir, and what the record of finished stages has of it."""

    def __init__(self, config: Path, work_dir: Path, before: Stage | None = None):
        self.config, self.folder, self.before = config, work_dir / config.stem, before
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


def main() -> int:
    args = parse_arguments()
    stages: list[Stage] = []
    for config in args.configs:
        stages.append(Stage(config, args.work_dir, stages[-1] if stages else None))
    names = [stage.config.stem for stage in stages]
    if len(set(names)) < len(names):
        raise InputError(f"the configs {', '.join(names)} must have names of their own: their work dirs are named so")
    record = args.work_dir / RECORD
    if args.status:
        print_status(stages, read_record(record))
        return 0
    with file_lock(args.work_dir / ".progressive.lock"):
        done = read_record(record)
        print_status(stages, done)
        for stage in stages:
            stage.check(done)
        for i, stage in enumerate(stages):
            if stage.config.stem in done:
                continue
            began_early = [later for later in stages[i + 1 :] if later.state(done) != "to come"]
            if began_early:
                raise InputError(
                    f"{began_early[0].folder} began from other weights than {stage.folder} will have; delete it, "
                    f"and its line in {record}, to train it again"
                )
            code = train_stage(i, stages, args)
            if code:
                return code
            done[stage.config.stem] = stage.entry
            atomic_write_bytes(record, (json.dumps(done, indent=1) + "\n").encode())
    print(f"weights of the last stage: {stages[-1].weights}")
    return 0


def train_stage(i: int, stages: list[Stage], args: argparse.Namespace) -> int:
    """Train one stage from the weights of the one before; return the exit code, which is 0 when it is done."""
    stage, title = stages[i], f"stage {i + 1} of {len(stages)}"
    load_from = str(stages[i - 1].weights) if i else args.load_from
    start = time.monotonic()
    print(f"{title}: {stage.config}", flush=True)
    code = run_trainer(trainer_command(stage, load_from, args))
    if code == EXIT_CODE:
        print(f"stage {i + 1} was stopped, and saved in {stage.folder}; the same command goes on from there")
        return code
    if code:
        print(
            f"error: stage {i + 1}, {stage.config.stem}, ended with code {code}; what it saved is in {stage.folder}, "
            "and the same command goes on from there",
            file=sys.stderr,
        )
        return code if code > 0 else 128 - code
    print(f"{title}: done in {(time.monotonic() - start) / 60:.1f} min", flush=True)
    return 0


def run_trainer(command: list[str]) -> int:
    """Run the trainer to its end, and return its own exit code, or its launcher's.

    A signal to stop goes to all of its processes, which are waited for: accelerate's launcher alone would leave the trainer
    behind, and the next run would find the work dir locked.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "code"
        code = run_to_end(command, {CODE_FILE: str(own), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS)})
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


def read_record(path: Path) -> dict[str, Any]:
    """Read the finished stages, by name, with their settings and the stage before. Raises InputError."""
    if not path.is_file():
        return {}
    record = read_json(path, "record of stages", "delete it")
    for name, entry in record.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("settings"), dict) or "after" not in entry:
            raise InputError(f"{path} is no record of stages ({name} has no settings); delete it")
    return record


def print_status(stages: list[Stage], done: dict[str, Any]) -> None:
    """Print a line about each stage."""
    for i, stage in enumerate(stages):
        print(f"{i + 1} of {len(stages)}  {stage.config.stem:<32} {stage.state(done):<24} {stage.folder}", flush=True)


def trainer_command(stage: Stage, load_from: str | None, args: argparse.Namespace) -> list[str]:
    """Return the command that launches the trainer; an existing run resumes, a new one starts from the weights."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", *shlex.split(args.launch)]
    train = [str(TRAINER), str(stage.config), "--work-dir", str(stage.folder)]
    options = {"--load-from": load_from, "--root": args.root, "--device": args.device, "--seed": args.seed}
    for option, value in options.items():
        train += [option, str(value)] if value is not None else []
    return [*launch, *train, *shlex.split(args.train)]


if __name__ == "__main__":
    run(main)
