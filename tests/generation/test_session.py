"""A run opened for sampling, without a command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import WIDTH
from runs import save_run

from diffusion.generation.session import open_session
from diffusion.generation.solver import Solver
from diffusion.utils.errors import InputError, MissingError


def test_a_session_describes_its_images(tmp_path):
    folder = save_run(tmp_path / "run", tmp_path, WIDTH, image_size=256)
    session = open_session(folder, solver=Solver(steps=2, guidance=1.5), seed=7, device="cpu")
    assert session.root == tmp_path and session.device.type == "cpu"
    assert session.settings["seed"] == 7 and session.settings["sampling_steps"] == 2
    assert session.settings["weights"] == session.run.fingerprint
    metadata = session.image_metadata(3)
    assert metadata["number"] == 3 and metadata["run"] == "run" and metadata["vae"] == "tiny"
    assert not any(str(Path.cwd()) in str(value) for value in metadata.values())
    assert "averaged" not in session.settings and "compiled" not in session.settings


def test_sessions_that_cannot_be_opened_raise(tmp_path):
    folder = save_run(tmp_path / "run", tmp_path, WIDTH, image_size=256)
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        open_session(folder, solver=Solver(precision="fp16"), device="cpu")
    with pytest.raises(MissingError, match="no weights at"):
        open_session(folder, Path("checkpoints/other.ckpt"), device="cpu")
    with pytest.raises(InputError, match="holds averaged weights only"):
        open_session(folder, averaged=False, device="cpu")
    with pytest.raises(MissingError, match="no VAE folder"):
        open_session(folder, vae="nowhere", device="cpu")
