"""Trackers, against classes that note what accelerate's would get."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import tracking
from runs import settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffusion.config.files import dump_config, load_config, read_config
from diffusion.config.settings import TrainingConfig
from diffusion.tasks.registry import build_task
from diffusion.training import trainer
from diffusion.training.monitoring import trackers
from diffusion.training.monitoring.run_log import RunLogger
from diffusion.training.monitoring.trackers import check_trackers, flatten_settings
from diffusion.utils.errors import InputError


class FakeTracker:
    """One of accelerate's trackers; `calls` has what all of them got."""

    calls: list = []  # noqa: RUF012  # shared on purpose, and made new by `fakes`

    def __init__(self, project, **arguments):
        self.project, self.arguments = project, arguments

    def start(self):
        self.calls.append(("start", self.project, self.arguments))
        self.tracker = SimpleNamespace(info=SimpleNamespace(run_id="mlflow-1"), define_metric=lambda *_, **__: None)

    def store_init_configuration(self, values):
        self.calls.append(("settings", values))

    def log(self, values, step=None):
        self.calls.append(("log", values, step))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def fakes(monkeypatch) -> list:
    """Put fake trackers and packages in the place of the real ones, and return what they are called with."""
    FakeTracker.calls = []
    for name in ("WandBTracker", "MLflowTracker", "TrackioTracker"):
        monkeypatch.setattr(tracking, name, FakeTracker)
    image = SimpleNamespace(Image=lambda file: ("image", file))
    monkeypatch.setitem(sys.modules, "wandb", image)
    monkeypatch.setitem(sys.modules, "trackio", image)
    noted = FakeTracker.calls
    mlflow = SimpleNamespace(
        set_tracking_uri=lambda uri: noted.append(("uri", uri)),
        log_image=lambda image, key, step: noted.append(("image", image.size, key, step)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for variable in ("WANDB_PROJECT", "WANDB_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return noted


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "names"),
        [
            ("tensorboard", ("tensorboard",)),  # as older configs and checkpoints have it
            ("none", ()),
            ("tensorboard,wandb", ("tensorboard", "wandb")),
            (["mlflow", "trackio"], ("mlflow", "trackio")),
            ((), ()),
        ],
    )
    def test_one_or_several_are_named(self, given, names):
        assert TrainingConfig(report_to=given).trackers == names

    @pytest.mark.parametrize("given", ["wand", ["none", "wandb"], ["wandb", "wandb"], "tensorboard,none", None])
    def test_others_are_refused(self, given):
        with pytest.raises(InputError, match="report_to"):
            TrainingConfig(report_to=given)

    def test_a_saved_config_is_read_back_an_older_one_too(self, tmp_path, feature_root):
        config = settings(feature_root, report_to=("wandb", "tensorboard"))
        dump_config(config, tmp_path / "config.py")
        assert read_config(tmp_path / "config.py") == config
        text = (tmp_path / "config.py").read_text()
        assert "report_to = ('wandb', 'tensorboard')" in text
        (tmp_path / "config.py").write_text(text.replace("('wandb', 'tensorboard')", "'none'"))
        assert read_config(tmp_path / "config.py").trackers == ()

    def test_a_config_file_and_the_command_line_name_them(self, tmp_path):
        (tmp_path / "mine.py").write_text('report_to = "none"')
        assert load_config(tmp_path / "mine.py").trackers == ()
        assert load_config(tmp_path / "mine.py", {"report_to": ["wandb", "mlflow"]}).trackers == ("wandb", "mlflow")

    def test_they_are_noted_by_dotted_keys(self):
        values = {"a": {"b": {"c": 1}, "d": None}, "e": (1, 2), "f": True}
        assert flatten_settings(values) == {"a.b.c": 1, "a.d": None, "e": "(1, 2)", "f": True}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_without_its_package_is_refused(name, monkeypatch):
    monkeypatch.setitem(sys.modules, trackers.TRACKERS[name].module, None)
    check_trackers([])
    with pytest.raises(InputError, match=f"report_to {name}: .*pip install {name}, or .*set report_to=none"):
        check_trackers([name])


def test_a_run_is_refused_before_anything_is_written(feature_root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = settings(feature_root, report_to=("tensorboard", "wandb"))
    with pytest.raises(InputError, match="report_to wandb: .*pip install wandb"):
        trainer.train(config, build_task(config), tmp_path / "run", cpu=True)
    assert not (tmp_path / "run").exists()


def log_something(logger: RunLogger, step: int) -> None:
    logger.curves("validation", {"loss": 0.5, "mse": 0.25}, step)
    logger.picture("samples", torch.zeros(3, 8, 16), step)
    logger.close()


def test_all_get_the_curves_and_the_picture(tmp_path, fakes):
    logger, file = RunLogger(tmp_path, True, ("loss",)), str(tmp_path / "samples/step_00000003.png")
    logger.start_trackers(["tensorboard", "wandb", "mlflow", "trackio"], 0, {"seed": 1, "data": {"root": "/x"}})
    log_something(logger, 3)
    curves = {"validation/loss": 0.5, "validation/mse": 0.25}
    logged = [call for call in fakes if call[0] in ("log", "image")]
    assert logged == [
        ("log", {**curves, "step": 3}, None),
        ("log", curves, 3),
        ("log", curves, 3),
        ("log", {"samples": ("image", file), "step": 3}, None),
        ("image", (16, 8), "samples", 3),
        ("log", {"samples": ("image", file)}, 3),
    ]
    assert [call for call in fakes if call[0] == "settings"] == [("settings", {"seed": 1, "data.root": "/x"})] * 3
    assert [call[1] for call in fakes if call[0] == "start"] == ["pixcell"] * 3 and fakes.count(("finish",)) == 3
    assert ("uri", f"sqlite:///{tmp_path / 'mlflow.db'}") in fakes
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["validation/loss", "validation/mse"] and events.Tags()["images"] == ["samples"]


def test_a_resumed_run_goes_on_with_the_same_runs_and_a_new_one_begins_others(tmp_path, fakes):
    def start(resumed: bool, names=("wandb", "mlflow", "trackio")) -> tuple[dict, dict]:
        del fakes[:]
        logger = RunLogger(tmp_path / "256", True, ("loss",))
        logger.start_trackers(names, 2, {"seed": 1}, resumed)
        logger.close()
        arguments = dict(zip(names, [call[2] for call in fakes if call[0] == "start"], strict=True))
        return arguments, json.loads((tmp_path / "256/trackers.json").read_text())

    first, kept = start(resumed=False)
    assert first["wandb"]["id"] == kept["wandb"] and first["trackio"]["name"] == kept["trackio"]
    assert first["mlflow"]["run_id"] is None and kept["mlflow"] == "mlflow-1"
    assert first["wandb"]["resume"] == "allow" and first["wandb"]["name"] == "256"
    second, still = start(resumed=True)
    assert still == kept and second["mlflow"]["run_id"] == "mlflow-1"
    assert second["wandb"]["id"] == kept["wandb"] and second["trackio"]["name"] == kept["trackio"]
    assert not [call for call in fakes if call[0] == "settings"]  # MLflow's never change
    _, fewer = start(resumed=True, names=("wandb",))
    assert fewer == kept  # those left out may come back
    third, other = start(resumed=False)
    assert other["wandb"] != kept["wandb"] and third["mlflow"]["run_id"] is None


def test_training_tells_the_trackers_and_resumes_them(feature_root, tmp_path, fakes):
    config = settings(feature_root, report_to=("wandb", "tensorboard"), max_steps=2)
    assert trainer.train(config, build_task(config), tmp_path / "run", cpu=True)
    first = fakes[:]
    steps = [call[1]["step"] for call in first if call[0] == "log" and "train/loss" in call[1]]
    assert steps == [1, 2] and ("finish",) in first
    (noted,) = [call[1] for call in first if call[0] == "settings"]
    assert noted["optimizer.lr"] == 1e-2 and noted["max_steps"] == 2
    config = dataclasses.replace(config, max_steps=3)
    assert trainer.train(config, build_task(config), tmp_path / "run", cpu=True)
    starts = [call[2]["id"] for call in fakes if call[0] == "start"]
    assert len(starts) == 2 and starts[0] == starts[1]


def test_a_server_that_is_away_does_not_end_the_run(tmp_path, fakes, monkeypatch):
    logger = RunLogger(tmp_path, True, ("loss",))
    logger.start_trackers(["wandb", "tensorboard"], 0)

    def away(self, values, step=None):
        raise ConnectionError("no route\nto the server")

    monkeypatch.setattr(FakeTracker, "log", away)
    log_something(logger, 1)
    text = (tmp_path / "train_log.log").read_text()
    assert text.count("wandb lacks what it was to get (ConnectionError: no route)") == 1
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("validation/loss")


def test_a_tracker_that_does_not_start_is_one_line(tmp_path, fakes, monkeypatch):
    def refuse(self):
        raise RuntimeError("api_key not configured (no-tty)\nlog in")

    monkeypatch.setattr(FakeTracker, "start", refuse)
    logger = RunLogger(tmp_path, True, ("loss",))
    with pytest.raises(InputError, match="report_to wandb does not start .RuntimeError: api_key not configured"):
        logger.start_trackers(["tensorboard", "wandb"], 0)
    assert not (tmp_path / "trackers.json").exists()
