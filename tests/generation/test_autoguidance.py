"""Guidance by a weaker network, from a checkpoint of the run to samples on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import forget_processes, save_run

from diffusion.cli.commands.large import large
from diffusion.cli.commands.sample import sample
from diffusion.utils.errors import InputError, MissingError
from diffusion.workdir import find_weak, open_run, with_weak

WIDTH = 8


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    forget_processes()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with an older checkpoint, of other weights."""
    folder = save_run(tmp_path / "run", tmp_path, WIDTH, 256)
    saved = torch.load(folder / "checkpoints/last_ema.ckpt")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in saved["state_dict"].items():
        if tensor.is_floating_point():
            saved["state_dict"][name] = tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
    torch.save(saved, folder / "checkpoints/older.ckpt")
    return folder


def pixels(folder: Path) -> np.ndarray:
    return np.asarray(Image.open(next((folder / "syn").iterdir())))


def test_an_older_checkpoint_guides(run, tmp_path):
    """The network as its own guide changes nothing; an older one does, and folders know which it was."""
    np.save(tmp_path / "tokens.npy", np.ones((1, WIDTH), np.float32))
    options = dict(workdir=run, tokens=[tmp_path / "tokens.npy"], steps=3, device="cpu")
    guided = dict(guidance=3.0, autoguidance=Path("checkpoints/older.ckpt"))
    calls = {
        "plain": dict(guidance=1.0),
        "itself": dict(guidance=3.0, autoguidance=Path("checkpoints/last_ema.ckpt")),
        "older": guided,
        "path": guided | dict(autoguidance=run / "checkpoints/older.ckpt"),
    }
    for name, call in calls.items():
        sample(**options, **call, out=tmp_path / name)
        forget_processes()
    found = {name: pixels(tmp_path / name).astype(int) for name in calls}
    assert abs(found["plain"] - found["itself"]).max() <= 1
    assert (found["older"] == found["path"]).all() and (found["older"] != found["plain"]).any()
    settings = json.loads((tmp_path / "older/samples.json").read_text())
    assert settings["autoguidance"] == open_run(run, "checkpoints/older.ckpt", torch.device("cpu")).fingerprint
    with pytest.raises(InputError, match="holds samples with"):
        sample(**options, **(guided | dict(autoguidance=None)), out=tmp_path / "older")


def test_large_pictures_are_guided_window_by_window(run, tmp_path):
    np.save(tmp_path / "grid.npy", np.ones((2, 2, WIDTH), np.float32))
    options = dict(workdir=run, tokens=tmp_path / "grid.npy", height=512, width=512, steps=2, device="cpu")
    for name, guide in (("a", "last_ema"), ("b", "older")):
        large(**options, guidance=3.0, autoguidance=Path(f"checkpoints/{guide}.ckpt"), out=tmp_path / name)
        forget_processes()
    assert (pixels(tmp_path / "a") != pixels(tmp_path / "b")).any()


def test_folders_know_how_blocks_were_cached_and_steps_placed(run, tmp_path):
    np.save(tmp_path / "tokens.npy", np.ones((1, WIDTH), np.float32))
    options = dict(workdir=run, tokens=[tmp_path / "tokens.npy"], steps=6, device="cpu", out=tmp_path / "out")
    sample(**options, block_cache="fast", spacing="karras", autoguidance=Path("checkpoints/older.ckpt"))
    settings = json.loads((tmp_path / "out/samples.json").read_text())
    assert settings["spacing"] == "karras"
    assert settings["block_cache"] == {"computed": [True, True, False, False, True, False], "order": 1}
    for other in (dict(spacing="karras"), dict(block_cache="fast")):
        forget_processes()
        with pytest.raises(InputError, match="holds samples with"):
            sample(**options, **other, autoguidance=Path("checkpoints/older.ckpt"))


def test_networks_that_cannot_guide_are_refused(run, tmp_path):
    opened = open_run(run, "checkpoints/last_ema.ckpt", torch.device("cpu"))
    other = save_run(tmp_path / "other", tmp_path, WIDTH, 256, prediction_type="v_prediction")
    with pytest.raises(InputError, match="predicts v_prediction, and the network epsilon: expected the same"):
        with_weak(opened, other)
    wide = save_run(tmp_path / "wide", tmp_path, 2 * WIDTH, 256)
    with pytest.raises(InputError, match="caption_channels 16, and the network's is 8: expected the same"):
        with_weak(opened, wide)
    with pytest.raises(MissingError):
        with_weak(opened, tmp_path / "nothing")
    assert find_weak(run, "checkpoints/older.ckpt") == run / "checkpoints/older.ckpt"
    assert find_weak(run, wide) == wide / "checkpoints/last_ema.ckpt"
