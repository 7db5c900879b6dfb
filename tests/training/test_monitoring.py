"""What is told of a run on the way: its log, the layer that makes bad numbers, and evaluations."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from diffusion.optim.ema import EMA
from diffusion.training.monitoring import run_log
from diffusion.training.monitoring.nonfinite import first_bad_layer, worst
from diffusion.training.monitoring.periodic_evaluation import PeriodicEvaluation

VALUES = dict(loss=1.0, mse=0.9, vb=0.1, grad_norm=0.5, lr=1e-4, samples_per_second=12.5, data_wait=0.25, memory_gb=1.5)


class TestRunLog:
    def test_a_line_has_the_values_and_the_time_that_is_left_and_is_of_one_run(self, tmp_path, monkeypatch):
        clock = SimpleNamespace(now=7.0)
        monkeypatch.setattr(run_log, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        logger = run_log.RunLogger(tmp_path / "run", True, ("loss", "mse", "vb"))
        logger.scalars(VALUES, 2, 10, 0.5)
        clock.now += 20  # for two steps; six are left
        logger.scalars(VALUES, 4, 10, 1.0)
        run_log.RunLogger(tmp_path / "other", True, ("loss",)).scalars(VALUES, 1, 10, 1.0)
        first, second = (tmp_path / "run/train_log.log").read_text().splitlines()
        assert first.endswith(
            "step 2/10, epoch 0.500: loss 1.0000 (mse 0.9000, vb 0.1000), grad norm 0.500, lr 1.00e-04, "
            "12.5 samples/s, data wait 25.0 %, memory 1.50 GB, left ?"
        )
        assert second.endswith("left 0:01:00")
        assert "step 1/10, epoch 1.000: loss 1.0000, grad" in (tmp_path / "other/train_log.log").read_text()

    def test_curves_are_those_of_the_main_process_and_of_the_run_that_went_on(self, tmp_path):
        for main, step, steps, loss in ((True, 0, (1, 2, 3), 1.0), (True, 1, (2,), 4.0), (False, 1, (2,), 9.0)):
            logger = run_log.RunLogger(tmp_path, main, ("loss",))
            if main:
                logger.start_trackers(["tensorboard"], step)
            for each in steps:
                logger.curves("validation", {"loss": loss}, each)
            logger.close()
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("validation/loss")
        assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 4.0)]


class TestNonfinite:
    def test_the_first_bad_layer_makes_bad_numbers_of_good_ones(self):
        model = nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        with first_bad_layer(model) as found:
            model(torch.tensor([[torch.nan, 1.0]]))  # bad before any layer
            assert found == []
            nn.init.constant_(model[1][0].bias, torch.inf)
            for _ in range(2):
                model(torch.ones(1, 2))
        assert found == ["1.0"]

    def test_the_worst_samples_are_the_bad_ones_or_those_with_the_largest_losses(self):
        assert worst(torch.tensor([1.0, torch.nan, 9.0, -torch.inf])) == [1, 3]
        assert worst(torch.arange(10.0)) == [9, 8, 7, 6, 5, 4, 3, 2]


def test_a_periodic_evaluation_that_is_due_sees_the_average_in_eval_mode(tmp_path):
    class Look(list):  # an evaluation that notes the step, the weight, and whether the network is in train mode
        def __call__(self, network, logger, step):
            self.append((step, network.weight.item(), network.training))

    (tmp_path / "checkpoints").mkdir()
    run = SimpleNamespace(model=nn.Linear(1, 1), meter=SimpleNamespace(exclude_time=(excluded := []).append))
    run.accelerator, run.ema, average = Accelerator(cpu=True), EMA(run.model, 0.5), run.model.weight.item()
    nn.init.constant_(run.model.weight, 8.0)
    saved, own = Look(), Look()
    saved.steps, own.steps = None, range(3, 6)
    evaluation = PeriodicEvaluation([saved, own], None, tmp_path, saved_steps={2, 4})
    assert [step for step in range(7) if step in evaluation] == [2, 3, 4, 5]
    for run.step, noted in ((2, "2\n"), (3, "2\n"), (4, "4\n")):  # runs are resumed at saved steps alone
        evaluation(run)
        assert (tmp_path / "checkpoints/looked_at").read_text() == noted
        assert run.model.weight.item() == 8 and run.model.training
    assert (saved, own) == ([(step, average, False) for step in (2, 4)], [(step, average, False) for step in (3, 4)])
    assert [seconds > 0 for seconds in excluded] == [True] * 3
