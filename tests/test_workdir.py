"""A run's folder: what opens it, which one is the default, what refuses to train there."""

from __future__ import annotations

import os

import pytest
import torch
from runs import save_run

from diffusion.model.convert import save_official
from diffusion.utils.errors import InputError, MissingError
from diffusion.workdir import LOCK_FILE, check_work_dir, default_work_dir, open_run

CPU = torch.device("cpu")


@pytest.fixture
def work_dir(tmp_path):
    return save_run(tmp_path / "output/a", tmp_path, width=8, image_size=256)


def test_a_run_is_its_config_and_its_network_in_eval_mode(work_dir):
    run = open_run(work_dir, "checkpoints/last_ema.ckpt", CPU)
    assert run.folder == work_dir and run.checkpoint == work_dir / "checkpoints/last_ema.ckpt"
    assert not run.model.training and run.device == CPU and run.model.null_condition.shape == (1, 8)
    assert run.model.config.caption_channels == run.config.caption_channels == 8
    again = open_run(work_dir, "checkpoints/last_ema.ckpt", CPU)
    assert run.fingerprint == again.fingerprint
    with torch.no_grad():
        again.model.final_layer.linear.weight[0, 0] += 1
    del again.__dict__["fingerprint"]
    assert run.fingerprint != again.fingerprint


def test_weights_of_another_network_than_the_config_s_are_refused(work_dir):
    run = open_run(work_dir, "checkpoints/last_ema.ckpt", CPU)
    save_official(run.model, work_dir / "checkpoints/v.ckpt", "v_prediction")
    with pytest.raises(InputError, match="prediction_type v_prediction instead of epsilon"):
        open_run(work_dir, "checkpoints/v.ckpt", CPU)


def test_weights_alone_imply_their_config(work_dir, tmp_path):
    run = open_run(work_dir, "checkpoints/last_ema.ckpt", CPU)
    save_official(run.model, tmp_path / "a.ckpt", "v_prediction")
    alone = open_run(tmp_path / "a.ckpt", "", CPU)
    assert alone.model.config == run.model.config and alone.fingerprint == run.fingerprint
    assert (alone.config.image_size, alone.config.prediction_type) == (256, "v_prediction")
    assert alone.config.data.type == "PanCancerDataLowRes"


def test_missing_runs_and_weights_are_named(work_dir, tmp_path):
    with pytest.raises(MissingError, match="no work dir .*nowhere"):
        open_run(tmp_path / "nowhere", "checkpoints/last_ema.ckpt", CPU)
    with pytest.raises(MissingError, match="no weights at .*none.ckpt; there are last_ema.ckpt in that folder"):
        open_run(work_dir, "checkpoints/none.ckpt", CPU)


def test_the_default_is_named_by_the_environment_or_is_the_newest(work_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXCELL_WORKDIR", raising=False)
    newer = save_run(tmp_path / "output/b", tmp_path, width=8, image_size=256)
    os.utime(work_dir / "checkpoints/last_ema.ckpt", (1, 1))
    assert default_work_dir().resolve() == newer
    monkeypatch.setenv("PIXCELL_WORKDIR", str(work_dir))
    assert default_work_dir() == work_dir
    monkeypatch.delenv("PIXCELL_WORKDIR")
    monkeypatch.chdir(tmp_path / "output/a")
    with pytest.raises(MissingError, match="no run in ./output"):
        default_work_dir()


def test_a_place_that_is_no_folder_cannot_be_trained_in(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--workdir .*file"):
        check_work_dir(tmp_path / "file")
    check_work_dir(tmp_path / "new")
    assert not (tmp_path / "new" / LOCK_FILE).exists()
