"""The command that plots curves: picture, table, errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from conftest import in_process
from PIL import Image
from scoring_data import write_events

from tools.plot_run import main


@pytest.fixture
def workdirs(tmp_path) -> list[Path]:
    whole = {
        "train/loss": {step: 1 / step for step in (10, 20, 30, 1200)},
        "validation/loss": {20: 0.5, 30: 0.25, 1200: math.nan},
        "train/samples_per_second": {10: 10.0, 20: 10.0, 30: 40.0, 1200: math.nan},
    }
    return [
        write_events(tmp_path / "one" / "run", whole),
        write_events(tmp_path / "two" / "run", {"train/lr": {1: 0.5, 5: 0.25}}),
    ]


class TestCommand:
    def test_picture_and_table(self, workdirs, tmp_path):
        out = tmp_path / "new" / "curves.png"
        done = in_process(main, *workdirs, "--out", out)
        assert done.returncode == 0, done.stderr
        assert (
            done.stdout.splitlines()
            == [
                "run      last step  last loss  best validation  at step  samples/s",
                "one/run      1,200    8.33e-4             0.25       30      13.33",  # 3 parts in 1/10 + 1/10 + 1/40 of time
                "two/run          5          -                -        -          -",
                f"written: {out}",
            ]
        )
        assert Image.open(out).size == (2 * 800, 2 * 400 + 2 * 28)
        assert [path.name for path in out.parent.iterdir()] == ["curves.png"]

    def test_from_step_and_tags(self, workdirs, tmp_path):
        out = tmp_path / "c.png"
        done = in_process(main, workdirs[0], "--from_step", 25, "--tags", "train/loss", "--log", "--out", out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[1].split() == ["run", "1,200", "8.33e-4", "0.25", "30", "40"]
        assert Image.open(out).size == (800, 400 + 2 * 28)
        done = in_process(main, *workdirs, "--from_step", 25, "--out", out)
        assert done.returncode == 2
        assert (
            f"error: --from-step 25: {workdirs[1]} ends at step 5; take a smaller step or leave it out" in done.stderr
        )

    def test_errors_are_one_line_and_leave_nothing(self, workdirs, tmp_path):
        out = tmp_path / "c.png"
        (tmp_path / "empty").mkdir()
        (tmp_path / "folder.png").mkdir()
        silent = write_events(tmp_path / "silent", {})
        for arguments, words in (
            ((tmp_path / "nowhere",), "no work dir at"),
            ((workdirs[0], tmp_path / "empty"), "no TensorBoard file"),
            ((silent,), "nothing was logged yet"),
            ((workdirs[0], workdirs[0]), "more than once"),
            ((tmp_path,), "one/run/tensorboard, silent/tensorboard, two/run/tensorboard"),
            ((workdirs[0], "--tags", "train/lost"), "did you mean train/loss?"),
            ((workdirs[0], "--out", tmp_path / "c.pdf"), "expected the name of a PNG file"),
            ((workdirs[0], "--out", tmp_path / "folder.png"), "is a folder, expected the name of a file"),
        ):
            done = in_process(main, "--out", out, *arguments)
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert done.returncode == 2 and len(lines) == 1 and words in lines[0], done.stderr
            assert not out.exists() and not list(tmp_path.rglob("*.tmp"))
