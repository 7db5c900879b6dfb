"""Training runs of seconds, for tests: their settings, what they left, and a script that trains several in one launch.

accelerate launch tests/runs.py FILE trains the runs in a JSON file, a list of {"root", "changes", "work_dir"} and
maybe "stop_after": starting processes takes longer than all of them together.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion.config.distillation_settings import DistillationConfig, DistillationSection
from diffusion.config.files import dump_config
from diffusion.config.flow_settings import EmbeddingFlowConfig, FlowDataConfig, FlowNetworkConfig
from diffusion.config.settings import (
    Config,
    ControlConfig,
    ControlNetSection,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    OptimizerConfig,
    SampleGridConfig,
    ScheduleConfig,
    TimestepConfig,
    TrainingConfig,
    ValidationConfig,
)
from diffusion.training.checkpoints.checkpoint import checkpoint_path

if TYPE_CHECKING:
    import pytest

    from diffusion.training.task import Task

KINDS = dict(
    sample_grid=SampleGridConfig,
    optimizer=OptimizerConfig,
    data=DataConfig,
    validation=ValidationConfig,
    evaluation=EvaluationConfig,
    timestep_sampling=TimestepConfig,
    lora=LoraConfig,
    control=ControlNetSection,
    distillation=lambda **own: DistillationSection(**{**own, "steps": tuple(own["steps"])}),  # JSON has lists
)
WIDTH = 8  # of the embeddings of `feature_root`


def settings(root: Path, **changes) -> Config:
    """A training run of seconds."""
    config = Config(
        data=DataConfig(root=str(root)),
        model_kwargs=dict(depth=1, hidden_size=16, num_heads=2),
        caption_channels=WIDTH,
        pe_interpolation=0.5,
        scale_factor=1.0,
        shift_factor=0.0,
        train_batch_size=2,
        optimizer=OptimizerConfig(lr=1e-2),
        lr_schedule_args=ScheduleConfig(num_warmup_steps=2),
        ema_rate=0.5,
        num_workers=0,
        max_steps=4,
        log_interval=1,
        save_model_steps=2,
        keep_last=None,
        sample_grid=SampleGridConfig(count=0),
        report_to="none",
    )
    return dataclasses.replace(config, **changes)


def control_settings(root: Path, base: Path | str, data: dict | None = None, **changes) -> ControlConfig:
    """A run of seconds of the task, beside a network of `settings`."""
    config = settings(root)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    values |= dict(
        task="control",
        data=DataConfig(root=str(root), mask_prefix="mask", **(data or {})),
        control=ControlNetSection(base=str(base)),
        class_dropout_prob=0.0,
        sample_grid=SampleGridConfig(count=2, steps=2),
        vae_pretrained="tiny", scale_factor=None, shift_factor=None,
    )  # fmt: skip
    return ControlConfig(**{**values, **changes})


def distillation_settings(
    root: Path, teacher: Path | str, section: dict | None = None, **changes
) -> DistillationConfig:
    """A run of seconds of the task, of a student of a network of `settings`."""
    config = settings(root)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    path = {} if (section or {}).get("method") == "consistency" else dict(teacher_steps=4)
    own = dict(teacher=str(teacher), guidance=1.5, steps=(1, 2, 4), spacing="power:1.5", **path)
    values |= dict(
        task="distillation",
        distillation=DistillationSection(**{**own, **(section or {})}),
        sample_grid=SampleGridConfig(count=2),
        vae_pretrained="tiny", scale_factor=None, shift_factor=None,
    )  # fmt: skip
    return DistillationConfig(**{**values, **changes})


def flow_settings(root: Path, data: dict | None = None, **changes) -> EmbeddingFlowConfig:
    """A run of seconds of the task embedding_flow: a prior, unless `data` names a source_dataset."""
    values = dict(
        data=FlowDataConfig(root=str(root), **(data or {})),
        embedding_flow=FlowNetworkConfig(hidden_size=16, depth=2),
        train_batch_size=4,
        optimizer=OptimizerConfig(lr=1e-2),
        ema_rate=0.5,
        max_steps=4,
        log_interval=1,
        save_model_steps=2,
        keep_last=None,
        report_to="none",
    )
    return EmbeddingFlowConfig(**{**values, **changes})


def save_run(folder: Path, root: Path, width: int, image_size: int = 1024, **changes) -> Path:
    """A work dir as the trainer leaves it, of a network with random weights."""
    from diffusion.model import build_model

    config = Config(
        image_size=image_size,
        data=DataConfig(type="PanCancerData", root=str(root), ssl_prefix=changes.pop("ssl_prefix", "uni")),
        model_kwargs=dict(depth=1, hidden_size=16, num_heads=2),
        model_max_length=(image_size // 256) ** 2,
        use_cond_pos_embed=True,
        pe_interpolation=image_size / 512,
        caption_channels=width,
        vae_pretrained="tiny",
        **changes,
    )
    torch.manual_seed(0)
    model = build_model(config.model, **config.model_arguments)
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    torch.nn.init.normal_(model.blocks[0].cross_attn.proj.weight, std=5.0)  # so that conditions count
    (folder / "checkpoints").mkdir(parents=True)
    told = {"architecture": model.config.to_dict(), "prediction_type": config.prediction_type}
    torch.save({"state_dict": model.state_dict(), **told}, folder / "checkpoints" / "last_ema.ckpt")
    dump_config(config, folder / "config.py")
    return folder


def read(work_dir: Path, step: int) -> dict[str, Any]:
    """A checkpoint, without the config it was written under."""
    content = torch.load(checkpoint_path(work_dir, step), weights_only=True)
    del content["config"]
    return content


def equal(first: Any, second: Any) -> bool:
    """Whether two trees of tensors and values are the same, to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def logged(work_dir: Path, tag: str = "train/loss") -> dict[int, float]:
    """A curve of a run, float32 as it was computed, by step."""
    from diffusion.evaluation.reports.curves import read_curves

    curve = read_curves(work_dir)[tag]
    return dict(zip(curve.steps, curve.values, strict=True))


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Set variables of the environment for a test."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def forget_processes() -> None:
    """accelerate keeps one state per process, and every run is to be the first."""
    from accelerate.state import AcceleratorState

    os.environ.pop("ACCELERATE_USE_FSDP", None)  # which a sharded run leaves behind
    AcceleratorState._reset_state(reset_partial_state=True)


def train(config: TrainingConfig, work_dir: Path, **options: Any) -> bool:
    """Train the task of a config."""
    from diffusion.tasks.registry import build_task
    from diffusion.training import trainer

    return trainer.train(config, build_task(config), work_dir, **options)


def dry_run(config: TrainingConfig, work_dir: Path, *arguments: Any, **options: Any) -> str:
    """Prepare the task of a config, and write nothing."""
    from diffusion.tasks.registry import build_task
    from diffusion.training import trainer

    return trainer.dry_run(config, build_task(config), work_dir, *arguments, **options)


def train_for(config: TrainingConfig, work_dir: Path, steps: int, task: Task | None = None) -> None:
    """Train, and be stopped by a signal in the step that is the last of so many."""
    from diffusion.tasks.registry import build_task
    from diffusion.training import trainer

    class StopsLater(trainer.PreemptionHandler):
        steps_left = steps

        def poll(self) -> int:
            self.steps_left -= 1
            if not self.steps_left:
                signal.raise_signal(signal.SIGTERM)
            return super().poll()

    original, trainer.PreemptionHandler = trainer.PreemptionHandler, StopsLater
    try:
        finished = trainer.train(config, task or build_task(config), work_dir, cpu=True)
    finally:
        trainer.PreemptionHandler = original
    assert not finished


def launch(
    root: Path,
    folder: Path,
    runs: list[tuple[dict, str, int | None]],
    spoil: tuple[int, int] | None = None,
    processes: int = 2,
) -> None:
    """Train runs one after the other in one launch: their changes, names, and when they are stopped.

    spoil: process and optimizer step whose loss is made no number.
    """
    listed = []
    for changes, name, stop_after in runs:
        run = dict(root=str(root), changes=changes, work_dir=str(folder / name), spoil=spoil)
        listed.append(run if stop_after is None else run | dict(stop_after=stop_after))
    (folder / "runs.json").write_text(json.dumps(listed))
    from conftest import command

    done = command("tests/runs.py", folder / "runs.json", processes=processes)
    assert done.returncode == 0, done.stderr


def spoil_step(process: int, step: int) -> None:
    """Have the loss of one step be no number in one of the processes."""
    from diffusion.tasks.denoising.losses import BatchLosses

    given, calls = BatchLosses.losses_at, [-1]  # the first call is before the first step

    def spoilt(self, *arguments):
        losses = given(self, *arguments)
        calls[0] += 1
        bad = calls[0] == step and int(os.environ["RANK"]) == process
        return {name: loss * torch.nan for name, loss in losses.items()} if bad else losses

    BatchLosses.losses_at = spoilt


def main() -> None:
    for run in json.loads(Path(sys.argv[1]).read_text()):
        changes = run["changes"]
        changes = {name: KINDS[name](**value) if name in KINDS else value for name, value in changes.items()}
        root, work_dir = Path(run["root"]), Path(run["work_dir"])
        if "flow_data" in changes:
            config: TrainingConfig = flow_settings(root, changes.pop("flow_data"), **changes)
        elif "distillation" in changes:
            config = distillation_settings(root, changes["distillation"].teacher, **changes)
        elif "control" in changes:
            config = control_settings(root, changes.pop("control").base, **changes)
        else:
            config = settings(root, **changes)
        if run["spoil"]:
            spoil_step(*run["spoil"])
        if "stop_after" in run:
            train_for(config, work_dir, run["stop_after"])
        else:
            train(config, work_dir, cpu=True)
        forget_processes()


if __name__ == "__main__":
    main()
