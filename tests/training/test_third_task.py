"""A task of its own file, outside the package: a linear map, fitted to points that a seed makes. It is trained as any other."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also run by a launcher

from runs import equal, forget_processes, read, train_for

from diffusion.config.settings import OptimizerConfig, TrainingConfig
from diffusion.data.batch import Batch
from diffusion.training.task import Task
from diffusion.training.trainer import train

SIZES = dict(max_steps=6, train_batch_size=4, log_interval=2, save_model_steps=3, num_workers=0, report_to="none")
CONFIG = TrainingConfig(**SIZES, optimizer=OptimizerConfig(lr=0.1), ema_rate=0.5)


@dataclass(frozen=True)
class PointBatch(Batch):
    x: torch.Tensor


class Points:
    def __len__(self):
        return 32

    def identity(self):
        return {"points": 32}

    def __getitem__(self, draw):
        return torch.randn(3, generator=torch.Generator().manual_seed(draw.index)), draw.seed


class Fitting(Task[TrainingConfig]):
    name = "fitting"

    def build_dataset(self):
        return Points()

    def collate(self, items):
        points, seeds = zip(*items, strict=True)
        return PointBatch(torch.stack(points), names=[str(seed) for seed in seeds], seeds=list(seeds))

    def build_network(self, load_from):
        return nn.Linear(3, 1), f"seed {self.config.seed}"

    def compute_losses(self, network, batch, noise):
        return {"loss": (network(batch.x) - batch.x.sum(1, keepdim=True)).square().mean(1)}


def run_twice(folder: Path) -> None:
    """Train without a stop, and with one after the second step."""
    train(CONFIG, Fitting(CONFIG), folder / "whole", cpu=True)
    train_for(CONFIG, folder / "parts", 2, Fitting(CONFIG))
    train(CONFIG, Fitting(CONFIG), folder / "parts", cpu=True)
    forget_processes()


def test_a_run_learns_and_a_stopped_one_resumes_to_the_bit(tmp_path):
    run_twice(tmp_path)
    content = read(tmp_path / "whole", 6)
    assert equal(content, read(tmp_path / "parts", 6)) and content["task"] == "fitting"
    before, after = ((read(tmp_path / "whole", step)["model"]["weight"] - 1).square().sum() for step in (0, 6))
    assert after < 0.5 * before
    exported = torch.load(tmp_path / "whole/checkpoints/last_ema.ckpt", weights_only=True)
    assert equal(exported, {"state_dict": content["ema"], "step": 6})


def test_two_processes_resume_to_the_bit(tmp_path):
    from conftest import command

    done = command("tests/training/test_third_task.py", tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert equal(read(tmp_path / "whole", 6), read(tmp_path / "parts", 6))
    assert len(read(tmp_path / "whole", 6)["processes"]) == 2


if __name__ == "__main__":
    run_twice(Path(sys.argv[1]))
