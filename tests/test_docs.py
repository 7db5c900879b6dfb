"""The cluster files of docs/: they load, parse, and name what exists."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from conftest import REPOSITORY

from diffusion.model import blocks

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
    named = re.findall(r"(?<![\w/])(?:configs|docs|train_scripts)/[\w./]+", text)
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []
    if script.suffix == ".sbatch":
        assert any(name.startswith("configs/") for name in named)
        processes = int(re.search(r"--nodes=(\d+)", text)[1]) * int(re.search(r"--gpus-per-node=(\d+)", text)[1])
        assert {PROCESSES[Path(name).stem] for name in named if name.startswith("docs/accelerate/")} == {processes}


LAUNCHER = """#!{python}
import subprocess, sys
sys.exit(1 if subprocess.call([sys.executable, "-c", {trainer!r}, *sys.argv[2:]]) else 0)
"""
TRAINER = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def launch(tmp_path):
    """Starts docs/slurm/launch.sh with a launcher that turns any code into 1, as accelerate does; waits for its trainer."""
    if shutil.which("bash") is None or shutil.which("pkill") is None:
        pytest.skip("no bash or no pkill")
    (tmp_path / "accelerate").write_text(LAUNCHER.format(python=sys.executable, trainer=TRAINER))
    (tmp_path / "accelerate").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    def start(seconds: str, code: str) -> subprocess.Popen:
        command = ["bash", REPOSITORY / "docs/slurm/launch.sh", seconds, code]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        return process

    return start


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_reaches_the_trainer_and_its_code_comes_back(launch, number):
    with launch("60", "0") as process:
        process.send_signal(number)  # to the shell alone, as Slurm does
        assert process.wait(30) == 75


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("2", 1)])
def test_without_a_signal_the_code_is_the_launchers(launch, code, expected):
    with launch("0", code) as process:
        assert process.wait(30) == expected
