"""The cluster files of docs/: they load, parse, and name what exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import server
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from conftest import ON_CPU, REPOSITORY, launcher
from runs import settings

from diffusion.cli.command import build_parser
from diffusion.cli.commands.train import train
from diffusion.config.files import dump_config, find_config, load_config, parse_override
from diffusion.model import blocks
from diffusion.tasks.registry import CONFIGS

PROCESSES = {"1_gpu": 1, "8_gpus": 8, "16x8_gpus": 128, "8_gpus_fsdp": 8}
SCRIPTS = sorted((REPOSITORY / "docs/slurm").iterdir())

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


def test_every_accelerate_config_is_listed():
    assert {path.stem for path in (REPOSITORY / "docs/accelerate").iterdir()} == PROCESSES.keys()


@pytest.mark.parametrize("name", PROCESSES)
def test_accelerate_loads_it(name):
    config = load_config_from_file(str(REPOSITORY / f"docs/accelerate/{name}.yaml"))
    assert config.num_processes == PROCESSES[name]
    assert config.num_machines == (16 if name.startswith("16x") else 1)
    assert config.mixed_precision == "bf16"
    assert (config.fsdp_config != {}) == name.endswith("fsdp")


def test_fsdp_options_are_those_of_the_launcher():
    """The launcher sets whatever stands there, misspelt or not."""
    options = load_config_from_file(str(REPOSITORY / "docs/accelerate/8_gpus_fsdp.yaml")).fsdp_config
    assert options.keys() <= {action.dest for action in launch_command_parser()._actions}
    assert options["fsdp_version"] == 2
    assert hasattr(blocks, options["fsdp_transformer_layer_cls_to_wrap"])


@needs_bash
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_names_files_that_exist(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    named = re.findall(r"(?<![\w/])docs/\w[\w./]+", text)
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []
    if script.suffix == ".sbatch":
        (command,) = re.findall(r" -m pixcell train (.*?)\ncode=", text, re.DOTALL)
        given = build_parser(train, "train").parse_args(shlex.split(command.replace("\\\n", " ")))
        load_config(find_config(given.config), dict(parse_override(each) for each in given.set_), CONFIGS)
        processes = int(re.search(r"--nodes=(\d+)", text)[1]) * int(re.search(r"--gpus-per-node=(\d+)", text)[1])
        assert {PROCESSES[Path(name).stem] for name in named if name.startswith("docs/accelerate/")} == {processes}


class TestLaunchScript:
    """docs/slurm/launch.sh around the trainer itself, on two processes."""

    @pytest.fixture
    def start(self, feature_root, tmp_path) -> Callable[..., subprocess.Popen]:
        if shutil.which("bash") is None or shutil.which("pkill") is None:
            pytest.skip("no bash or no pkill")
        (tmp_path / "bin").mkdir()
        accelerate = tmp_path / "bin/accelerate"  # whose processes are forks of it: a third of the imports
        accelerate.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} tests/server.py -m {server.LAUNCHER} "$@"\n')
        accelerate.chmod(0o755)

        def launch(interpreter: bool = False, **changes) -> subprocess.Popen:
            dump_config(settings(feature_root, **changes), tmp_path / "config.py")
            options = launcher(processes=2)[3:]
            script = ["-m", "pixcell", "train", tmp_path / "config.py", "--workdir", tmp_path / "run"]
            command = ["bash", "docs/slurm/launch.sh", *options, *script, "--device", "cpu"]
            place = Path(sys.executable).parent if interpreter else accelerate.parent
            environment = os.environ | ON_CPU | {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
            output = open(tmp_path / "output", "a")  # noqa: SIM115 (of the process)
            return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output)

        return launch

    def test_a_signal_reaches_the_trainer_and_its_code_comes_back(self, start, tmp_path):
        log = tmp_path / "run/train_log.log"
        last = 0
        for i, number in enumerate((signal.SIGUSR1, signal.SIGTERM), start=1):
            process, until = start(max_steps=100_000), time.monotonic() + 120
            while f"step {last + 2}/" not in (log.read_text() if log.exists() else "") and time.monotonic() < until:
                time.sleep(0.05)
            process.send_signal(number)  # to the shell alone, as Slurm does
            assert process.wait(60) == 75, (tmp_path / "output").read_text()
            assert log.read_text().count("stopped by SIGUSR1") == i
            last = json.loads((tmp_path / "run/checkpoints/last.json").read_text())["step"]
        assert start(max_steps=last + 1).wait(120) == 0, (tmp_path / "output").read_text()
        assert f"from step {last} to {last + 1}" in log.read_text()

    def test_a_mistake_is_no_stop(self, start, tmp_path):
        assert start(interpreter=True, caption_channels=9).wait(120) not in (0, 75)
        assert "set caption_channels" in (tmp_path / "output").read_text()
