"""Sampling from Python, without a command line: a session, a source of conditions, a folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import WIDTH, read_pixels
from runs import save_run

from diffusion.generation.output_folder import OutputFolder
from diffusion.generation.sample_patches import sample_patches
from diffusion.generation.session import Session, open_session
from diffusion.generation.solver import Solver
from diffusion.generation.sources import ConditionSource, find_origin
from diffusion.utils.errors import InputError


@pytest.fixture
def session(tmp_path) -> Session:
    folder = save_run(tmp_path / "run", tmp_path, WIDTH, image_size=256)
    return open_session(folder, solver=Solver(steps=2, guidance=1.5), seed=7, device="cpu")


@pytest.fixture
def source(tmp_path) -> ConditionSource:
    np.save(tmp_path / "two.npy", np.random.default_rng(0).normal(size=(2, 1, WIDTH)))
    return ConditionSource(tokens=[tmp_path / "two.npy"])


def test_a_folder_is_filled_and_completed(session, source, tmp_path, capsys):
    folder = OutputFolder(tmp_path / "out", "png")
    sampled = sample_patches(session, source, folder, (256,), None, 100, batch_size=2)
    assert sampled.size == 256 and sampled.images > 0 and sampled.seconds_per_image == sampled.seconds / sampled.images
    first = {path.name: read_pixels(path).astype(int) for path in (tmp_path / "out/syn").iterdir()}
    assert sorted(first) == ["000000_two_0.png", "000001_two_1.png"]
    settings = json.loads((tmp_path / "out/samples.json").read_text())
    assert (
        settings["pictures"] == "patches"
        and settings["conditions"] == find_origin(session, source).content["conditions"]
    )
    (tmp_path / "out/syn/000000_two_0.png").unlink()
    sample_patches(session, source, folder, (256,), 3, 100, batch_size=1)
    again = {path.name: read_pixels(path).astype(int) for path in (tmp_path / "out/syn").iterdir()}
    assert len(again) == 3 and all(np.abs(again[name] - pixels).max() <= 1 for name, pixels in first.items())
    assert "1 of 3 images are there; sampling 2" in capsys.readouterr().out


def test_a_network_of_another_size_raises(session, source, tmp_path):
    with pytest.raises(InputError, match="was trained at 256 pixels: this tool samples 512 and 1024"):
        sample_patches(session, source, OutputFolder(tmp_path / "out", "png"), (512, 1024), None, 1, 1)
