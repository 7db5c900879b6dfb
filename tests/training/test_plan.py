"""The numbers of a run that follow from config, data and processes."""

from __future__ import annotations

import math

import torch

from diffusion.config.settings import Config, ScheduleConfig
from diffusion.training.plan import Plan, plan_notes, plan_run, save_steps

CPU = torch.device("cpu")


def test_plan_counts_optimizer_steps(tmp_path):
    config = Config(
        train_batch_size=4, gradient_accumulation_steps=3, num_epochs=2, save_model_steps=5, save_model_epochs=1
    )
    plan = plan_run(config, samples=100, processes=2)
    assert plan.global_batch == 24 and plan.total_steps == math.ceil(200 / 24)
    assert save_steps(config, plan) == {4, 5, 8, 9}


def test_a_warm_up_that_the_run_is_too_short_for_is_said():
    config = Config(lr_schedule_args=ScheduleConfig(num_warmup_steps=100))
    assert plan_notes(config, Plan(100, 4, 101, 2e-3)) == plan_notes(config, Plan(100, 4, 0, 2e-3)) == []
    (note,) = plan_notes(config, Plan(100, 4, 20, 2e-3))
    assert "a warm-up of 100 steps in a run of 20: the learning rate reaches 0.0004 at most, not 0.002" in note
