"""pixcell train-codec, from Python and as its script: which settings a run gets, and what is left of it."""

from __future__ import annotations

import importlib

import pytest
from conftest import in_process

from diffusion.cli.commands.train_codec import train_codec
from diffusion.training.parallel.preemption import EXIT_CODE

task = importlib.import_module("diffusion.tasks.codec.task")
script = importlib.import_module("train_scripts.train_tiny_vae").main


@pytest.fixture
def runs(monkeypatch):
    """The calls of the training itself, which makes its work dir; without lines it was stopped."""
    calls, lines = [], ["a.png: fine"]

    def train(config, work_dir, out, device, fresh, accept_changes):
        work_dir.mkdir()
        calls.append((config, work_dir, out, fresh, accept_changes))
        return list(lines)

    monkeypatch.setattr(task, "train_codec", train)
    return calls, lines


def test_its_own_work_dir_goes_when_the_codec_is_written(runs, tmp_path):
    calls, lines = runs
    assert train_codec(out=tmp_path / "codec", root=tmp_path, max_steps=3, device="cpu") == 0
    config, work_dir, *rest = calls[0]
    assert (config.source, config.max_steps) == (str(tmp_path / "data/demo/source"), 3)
    assert rest == [tmp_path / "codec", False, False] and not work_dir.exists()
    lines.clear()
    assert train_codec(out=tmp_path / "codec", device="cpu") == EXIT_CODE and work_dir.is_dir()


def test_the_script_has_its_published_options(runs, tmp_path):
    own = ("--work-dir", tmp_path / "run", "--steps", 5, "--batch", 2, "--init", tmp_path / "a", "--accept-changes")
    done = in_process(script, "--source", tmp_path, "--out", tmp_path / "b", *own, "--crop", 32, "--seed", 4)
    assert done.returncode == 0 and done.stdout == "a.png: fine\n", done.stderr
    config, work_dir, out, fresh, accept = runs[0][0]
    assert (config.max_steps, config.train_batch_size, config.crop, config.seed) == (5, 2, 32, 4)
    assert (config.load_from, config.source, out) == (str(tmp_path / "a"), str(tmp_path), tmp_path / "b")
    assert work_dir.is_dir() and accept and not fresh
