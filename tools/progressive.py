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
from diffusion.formats import CHECKPOINT_PATTERN, CHECKPOINTS_DIR, LAST_WEIGHTS
from diffusion.training.parallel.preemption import CODE_FILE, EXIT_CODE
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write
from diffusion.utils.locks import file_lock
from diffusion.utils.text import read_json

TRAINER = Path(__file__).resolve().parents[1] / "train_scripts" / "train_pixcell.py"
RECORD = "stages.json"
GRACE = 600  # seconds in which processes that the launcher left behind have to save and end
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
    """One config, checked, with its work dir, and what the record of finished stages says of it."""

    def __init__(self, config: Path, work_dir: Path, before: Stage | None = None):
        self.config, self.folder, self.before = config, work_dir / config.stem, before
        settings = load_config(config)  # a mistake in the last stage shows now, not days later
        self.steps, self.size = settings.max_steps, settings.image_size
        self.settings = json.loads(json.dumps(asdict(settings)))
        if before is not None and before.size > self.size:
            raise InputError(
                f"{before.config} is of {before.size} pixels, {config} of {self.size}: expected the smaller first"
            )

    @property
    def weights(self) -> Path:
        return self.folder / LAST_WEIGHTS

    @property
    def entry(self) -> dict[str, Any]:
        """What the record keeps of a finished stage."""
        return {"after": self.before.config.stem if self.before else None, "settings": self.settings}

    def changed(self, done: dict[str, Any]) -> list[str]:
        """What is no longer as it was when the stage was finished; keys that only one of both versions has do not count."""
        had = done[self.config.stem]
        keys = self.settings.keys() & had["settings"].keys()
        other = [key for key in sorted(keys) if self.settings[key] != had["settings"][key]]
        return other + (["the stage before it"] if had["after"] != self.entry["after"] else [])

    def state(self, done: dict[str, Any]) -> str:
        """`done`, `at step N`, or `to come`."""
        if self.config.stem in done:
            changed = self.changed(done)
            return f"done, before a change of {', '.join(changed)}" if changed else "done"
        saved = sorted(self.folder.glob(f"{CHECKPOINTS_DIR}/{CHECKPOINT_PATTERN}"))
        if not saved:
            return "to come"
        return f"at step {int(saved[-1].stem.removeprefix('step_'))}{f' of {self.steps}' if self.steps else ''}"

    def check(self, done: dict[str, Any]) -> None:
        """Raises InputError when a finished stage is not the one that is asked for, or its weights are gone."""
        if self.config.stem not in done:
            return
        retrain = f"delete {self.folder} with its entry in {self.folder.parent / RECORD} to train it again"
        changed = self.changed(done)
        if changed:
            raise InputError(
                f"{self.config}: {', '.join(changed)} changed after its stage was finished; undo that, or {retrain}"
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
        show(stages, read_record(record))
        return 0
    with file_lock(args.work_dir / ".progressive.lock"):
        done = read_record(record)
        show(stages, done)
        for stage in stages:
            stage.check(done)
        for i, stage in enumerate(stages):
            if stage.config.stem in done:
                continue
            begun = [later for later in stages[i + 1 :] if later.state(done) != "to come"]
            if begun:
                raise InputError(
                    f"{begun[0].folder} began from other weights than {stage.folder} will have; delete it, "
                    f"and its line in {record}, to train it again"
                )
            before = str(stages[i - 1].weights) if i else args.load_from
            began = time.monotonic()
            print(f"stage {i + 1} of {len(stages)}: {stage.config}", flush=True)
            code = call(trainer_command(stage, before, args))
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
            done[stage.config.stem] = stage.entry
            with atomic_write(record) as temporary:
                temporary.write_text(json.dumps(done, indent=1) + "\n")
            print(f"stage {i + 1} of {len(stages)}: done in {(time.monotonic() - began) / 60:.1f} min", flush=True)
    print(f"weights of the last stage: {stages[-1].weights}")
    return 0


def call(command: list[str]) -> int:
    """Run the trainer to its end and give its own code, or its launcher's. A signal to stop goes to all of its processes,
    and is waited for: accelerate's launcher alone would leave the trainer behind, and the next run would find it at work."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "code"
        code = wait_for(command, {CODE_FILE: str(own), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE)})
        return int(own.read_text()) if own.is_file() else code


def wait_for(command: list[str], environment: dict[str, str]) -> int:
    """Run a command until nothing of it is left, and give its code; it gets SIGTERM for any signal to stop."""
    child = subprocess.Popen(command, start_new_session=True, env={**os.environ, **environment})
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda *_: os.killpg(child.pid, signal.SIGTERM)) for number in numbers}
    try:
        code = child.wait()
        with contextlib.suppress(OSError):  # until nobody of the group is left to send it to
            for i in range(GRACE * 10):
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
    try:
        record = read_json(path, "record of stages", "delete it")
        for entry in record.values():
            entry["settings"].keys(), entry["after"]
    except (TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path} is no record of stages ({error!r}); delete it") from error
    return record


def show(stages: list[Stage], done: dict[str, Any]) -> None:
    for i, stage in enumerate(stages):
        print(f"{i + 1} of {len(stages)}  {stage.config.stem:<32} {stage.state(done):<24} {stage.folder}", flush=True)


def trainer_command(stage: Stage, load_from: str | None, args: argparse.Namespace) -> list[str]:
    """`accelerate launch` of the trainer; a run that is there goes on, a new one starts from the weights."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", *shlex.split(args.launch)]
    train = [str(TRAINER), str(stage.config), "--work-dir", str(stage.folder)]
    given = {"--load-from": load_from, "--root": args.root, "--device": args.device, "--seed": args.seed}
    for option, value in given.items():
        train += [option, str(value)] if value is not None else []
    return [*launch, *train, *shlex.split(args.train)]


if __name__ == "__main__":
    run(main)
