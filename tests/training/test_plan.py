"""The numbers of a run that follow from config, data and processes."""

from __future__ import annotations

import math

import torch

from diffusion.config.settings import (
    Config,
)
from diffusion.training.plan import plan_run, save_steps

CPU = torch.device("cpu")


def test_plan_counts_optimizer_steps(tmp_path):
    config = Config(
        train_batch_size=4, gradient_accumulation_steps=3, num_epochs=2, save_model_steps=5, save_model_epochs=1
    )
    plan = plan_run(config, samples=100, processes=2)
    assert plan.global_batch == 24 and plan.total_steps == math.ceil(200 / 24)
    assert save_steps(config, plan) == {4, 5, 8, 9}
