"""Stage after stage at tiny size, through accelerate launch: 256, 512 and 1024 pixels, a stop between, and its record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, WIDTH, command, in_process

from diffusion.cli.commands.stages import stages
from diffusion.model.convert import load_weights
from diffusion.training.parallel.preemption import EXIT_CODE
from diffusion.training.stages import Stage, trainer_command
from tools.progressive import main

BASE = f"""_base_ = [{str(REPOSITORY / "configs" / "_base_.py")!r}]
model_kwargs = dict(depth=1, hidden_size=16, num_heads=2)
caption_channels = {WIDTH}
scale_factor, shift_factor = 1.0, 0.0
train_batch_size = 2
optimizer = dict(lr=1e-3)
num_workers = 0
max_steps = 2
sample_grid = dict(count=0)
report_to = "none"
"""
STAGES = {
    "small": dict(image_size=256, pe_interpolation=0.5),
    "middle": dict(image_size=512, pe_interpolation=1.0, model_max_length=4, use_cond_pos_embed=True),
    "large": dict(
        image_size=1024, pe_interpolation=2.0, model_max_length=16, use_cond_pos_embed=True,
        data=dict(type="PanCancerData"),
    ),
}  # fmt: skip


@pytest.fixture
def configs(tmp_path: Path) -> list[Path]:
    paths = []
    for name, settings in STAGES.items():
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(BASE + "".join(f"{key} = {value!r}\n" for key, value in settings.items()))
    return paths


def test_stages_resume_after_a_stop(feature_root, configs, tmp_path):
    work = tmp_path / "work"
    arguments = (*configs, "--work-dir", work, "--root", feature_root, "--device", "cpu", "--train", "--report_to none")
    whole = configs[2].read_text()
    configs[2].write_text(whole + 'prediction_type = "v_prediction"\n')  # which the weights of the stage before are not
    stopped = command("tools/progressive.py", *arguments)
    assert stopped.returncode != 0
    assert "error: stage 3, large, ended with code" in stopped.stderr and "goes on from there" in stopped.stderr
    assert "made anew   y_embedder.y_embedding  (1, 8) -> (4, 8)" in stopped.stderr + stopped.stdout
    assert set(json.loads((work / "stages.json").read_text())) == {"small", "middle"}
    before = {name: (work / name / "checkpoints/last_ema.ckpt").read_bytes() for name in ("small", "middle")}

    configs[2].write_text(whole)
    status = in_process(main, *arguments, "--status")
    assert status.returncode == 0
    assert [line.split()[3:5] for line in status.stdout.splitlines()] == [
        ["small", "done"],
        ["middle", "done"],
        ["large", "to"],
    ]
    done = command("tools/progressive.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "stage 3 of 3: done" in done.stdout and "stage 1 of 3" not in done.stdout
    for name, content in before.items():
        assert (work / name / "checkpoints/last_ema.ckpt").read_bytes() == content
    weights = {name: load_weights(work / name / "checkpoints/step_00000000.ckpt", ema=False) for name in STAGES}
    ends = {name: load_weights(work / name / "checkpoints/last_ema.ckpt") for name in STAGES}
    for stage, following in (("small", "middle"), ("middle", "large")):
        qkv = "blocks.0.attn.qkv.weight"
        assert torch.equal(weights[following].state_dict[qkv], ends[stage].state_dict[qkv])
    assert ends["large"].architecture["model_max_length"] == 16

    again = in_process(main, *arguments)
    assert again.returncode == 0 and "stage 3 of 3: " not in again.stdout


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_a_signal_stops_the_trainer_and_the_stage_resumes(feature_root, configs, tmp_path):
    work = tmp_path / "work"
    whole = configs[0].read_text()
    configs[0].write_text(whole + "max_steps = 100_000\nsave_model_steps = 2\n")
    command_line = (
        "tools/progressive.py",
        configs[0],
        "--work-dir",
        work,
        "--train",
        f"--root {feature_root} --device cpu",
    )
    process = subprocess.Popen([sys.executable, *map(str, command_line)], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    folder, until = work / "small/checkpoints", time.monotonic() + 120
    while len(list(folder.glob("step_*.ckpt"))) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == EXIT_CODE
    saved = sorted(folder.glob("step_*.ckpt"))
    time.sleep(1)
    assert sorted(folder.glob("step_*.ckpt")) == saved  # nobody trains on
    assert not (work / "stages.json").exists()

    last = int(saved[-1].stem.removeprefix("step_"))
    assert f"at step {last}" in in_process(main, *command_line[1:], "--status").stdout
    configs[0].write_text(whole + f"max_steps = {last + 2}\n")
    done = command(*command_line)
    assert done.returncode == 0, done.stderr
    assert "was stopped, and saved in" not in done.stdout
    assert f"from step {last} to {last + 2}" in (work / "small/train_log.log").read_text()


def test_mistakes_in_any_stage_are_found_before_training(configs, tmp_path):
    configs[2].write_text(configs[2].read_text() + "image_sice = 3\n")
    wrong = in_process(main, *configs, "--work-dir", tmp_path / "work")
    assert wrong.returncode == 2 and "image_sice" in wrong.stderr and not (tmp_path / "work").exists()
    twice = in_process(main, configs[0], configs[0], "--work-dir", tmp_path / "work")
    assert twice.returncode == 2 and "names of their own" in twice.stderr


def test_changed_configs_and_stages_begun_too_early_are_refused(configs, tmp_path):
    work = tmp_path / "work"
    base = tmp_path / "base.py"
    base.write_text(configs[0].read_text())
    configs[0].write_text('_base_ = ["./base.py"]\n')
    (work / "small/checkpoints").mkdir(parents=True)
    (work / "small/checkpoints/last_ema.ckpt").touch()
    (work / "stages.json").write_text(json.dumps({"small": Stage(configs[0], work).entry}))
    assert " done " in in_process(main, *configs, "--work-dir", work, "--status").stdout
    base.write_text(base.read_text() + "max_steps = 3\n")  # of what the config inherits
    changed = in_process(main, *configs, "--work-dir", work)
    assert changed.returncode == 2 and "max_steps changed after its stage was finished" in changed.stderr
    status = in_process(main, *configs, "--work-dir", work, "--status")
    assert status.returncode == 0 and "done, before a change of max_steps" in status.stdout
    wrong_order = in_process(main, *configs[::-1], "--work-dir", work)
    assert wrong_order.returncode == 2 and "expected the smaller first" in wrong_order.stderr
    skipped = Stage(configs[2], work, Stage(configs[0], work))
    assert skipped.changes({"large": Stage(configs[2], work, Stage(configs[1], work)).entry}) == ["the stage before it"]
    (work / "stages.json").write_text("{")
    assert "no record of stages" in in_process(main, *configs, "--work-dir", work).stderr
    (work / "stages.json").unlink()
    (work / "middle/checkpoints").mkdir(parents=True)
    (work / "middle/checkpoints/step_00000300.ckpt").touch()
    status = in_process(main, *configs, "--work-dir", work, "--status")
    assert "at step 300 of 2" in status.stdout
    older = in_process(main, *configs, "--work-dir", work)
    assert older.returncode == 2 and "began from other weights" in older.stderr


def test_the_trainer_is_the_command_with_the_options_that_are_given(configs, tmp_path):
    stage = Stage(configs[0], tmp_path / "work")
    options = {"--load-from": None, "--root": Path("/data"), "--seed": 3}
    line = trainer_command(stage, options, "--num_processes 2", "--set 'a=1 2'")
    assert line[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert line[3:9] == ["--num_processes", "2", "-m", "pixcell", "train", str(configs[0])]
    assert line[9:] == ["--workdir", str(tmp_path / "work/small"), "--root", "/data", "--seed", "3", "--set", "a=1 2"]


def test_status_from_python_by_the_names_of_configs(tmp_path, capsys):
    assert stages([Path("demo/demo_256"), Path("demo/demo_512")], tmp_path / "work", status=True) == 0
    lines = [line.split()[3:6] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["demo_256", "to", "come"], ["demo_512", "to", "come"]] and not (tmp_path / "work").exists()
