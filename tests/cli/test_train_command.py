"""pixcell train: from Python, and in several processes."""

from __future__ import annotations

import pytest
import torch
from conftest import command
from runs import read, settings

from diffusion.cli.commands.train import train
from diffusion.config.files import dump_config
from diffusion.utils.errors import InputError


@pytest.fixture
def config(feature_root, tmp_path):
    dump_config(settings(feature_root), tmp_path / "config.py")
    return tmp_path / "config.py"


def test_it_trains_from_python(config, tmp_path, capsys):
    work_dir = tmp_path / "run"
    assert train(config, work_dir, device="cpu", batch_size=3, set_=["max_steps=2"], dry_run=True) == 0
    assert f"would write to {work_dir}; nothing was written" in capsys.readouterr().out and not work_dir.exists()
    assert train(config, work_dir, device="cpu", seed=5, set_=["max_steps=2", "optimizer.lr=1e-4"]) == 0
    saved = read(work_dir, 2)
    assert saved["step"] == 2 and "seed = 5\n" in (work_dir / "config.py").read_text()
    with pytest.raises(InputError, match="without --fresh it goes on, or name another --workdir"):
        train(config, work_dir, device="cpu", fresh=True)


def test_two_processes_of_accelerate(config, tmp_path):
    done = command("-m", "pixcell", "train", config, "--workdir", tmp_path / "run", "--device", "cpu", processes=2)
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "run/checkpoints/step_00000004.ckpt", weights_only=True)
    assert state["position"] == 4 * 2 * 2 and len(state["processes"]) == 2
