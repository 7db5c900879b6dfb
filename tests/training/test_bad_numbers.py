"""Losses and gradients that are no numbers: left out, counted, named; too many in a row end in a report."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from runs import equal, forget_processes, launch, logged, read, settings, train

from diffusion.config.settings import OptimizerConfig, TimestepConfig
from diffusion.tasks.denoising import task as denoising
from diffusion.tasks.denoising.losses import BatchLosses
from diffusion.training import state, trainer
from diffusion.utils.errors import InputError


def spoil_steps(monkeypatch: pytest.MonkeyPatch, *bad: int) -> list[list[str]]:
    """Make the losses of some optimizer steps, counted from 1, no numbers; their patches' names."""
    given, met, names = BatchLosses.losses_at, [], []

    def spoilt(self, network, batch, drawn):
        losses = given(self, network, batch, drawn)
        met.append(batch.names)
        if len(met) in bad:
            names.append(batch.names)
            losses["loss"] = losses["loss"] * torch.tensor(float("nan"))
        return losses

    monkeypatch.setattr(BatchLosses, "losses_at", spoilt)
    return names


@pytest.mark.parametrize(("precision", "fp32_attention"), [("no", True), ("bf16", True), ("bf16", False)])
def test_a_bad_step_is_left_out_counted_and_named(feature_root, tmp_path, monkeypatch, precision, fp32_attention):
    names = spoil_steps(monkeypatch, 3)
    precise = dict(mixed_precision=precision, fp32_attention=fp32_attention)
    config = settings(feature_root, save_model_steps=1, report_to="tensorboard", **precise)
    train(config, tmp_path, cpu=True)
    before, after = read(tmp_path, 2), read(tmp_path, 3)
    assert equal([before[part] for part in ("model", "ema", "optimizer", "lr_schedule")],
                 [after[part] for part in ("model", "ema", "optimizer", "lr_schedule")])  # fmt: skip
    assert (after["step"], after["position"], after["skipped"]) == (3, 6, 1)
    assert not equal(after["model"], read(tmp_path, 4)["model"])
    text = (tmp_path / "train_log.log").read_text()
    assert f"step 3 skipped, 1 in a row: its loss or gradient is not finite. Patches: {', '.join(names[0])}" in text
    assert list(logged(tmp_path, "train/skipped_steps").values()) == [0, 0, 1, 1]


def test_they_count_in_a_row_only(feature_root, tmp_path, monkeypatch):
    spoil_steps(monkeypatch, 2, 3, 5, 6)
    train(settings(feature_root, max_steps=7, max_bad_steps=3), tmp_path, cpu=True)
    assert read(tmp_path, 7)["skipped"] == 4


def test_too_many_end_with_a_saved_state_and_a_report(feature_root, tmp_path):
    """Latents whose error's square overflows: told with the patches and their ranges."""
    config = settings(feature_root, scale_factor=1e38, shift_factor=0.0, max_bad_steps=2, max_steps=9)
    with pytest.raises(InputError, match="2 steps in a row had a loss or gradient.*bad_steps.txt says where.*saved"):
        train(config, tmp_path, cpu=True)
    saved = read(tmp_path, 2)
    assert equal(saved["model"], read(tmp_path, 0)["model"]) and saved["skipped"] == 2
    report = (tmp_path / "bad_steps.txt").read_text()
    names = re.findall(r"^set/brca/single_1024/slide_\d/\d_0.jpeg$", report, flags=re.MULTILINE)
    assert "step 2 skipped, 2 in a row" in report and len(names) == 4  # of both steps
    assert re.search(r"set/brca/single_1024/slide_\d/\d_0.jpeg: loss (nan|inf), timestep \d+, latents -\d", report)
    assert (
        "first layer with bad numbers: none; the loss itself" in report and "weights with bad numbers: none" in report
    )
    assert re.search(r"gradients with bad numbers: \S+.*\(\d+ of 30\)", report)


def test_weights_gone_bad_are_told(feature_root, tmp_path, monkeypatch):
    build = denoising.build_network

    def spoilt(*arguments):
        model, origin = build(*arguments)
        model.blocks[0].mlp.fc1.bias.data[3] = float("inf")
        return model, origin

    monkeypatch.setattr(denoising, "build_network", spoilt)
    with pytest.raises(InputError, match="1 steps in a row"):
        train(settings(feature_root, max_bad_steps=1), tmp_path, cpu=True)
    report = (tmp_path / "bad_steps.txt").read_text()
    assert "first layer with bad numbers: blocks.0.mlp.fc1" in report
    assert "weights with bad numbers: blocks.0.mlp.fc1.bias" in report


def test_a_bad_gradient_is_told_from_good_ones(feature_root, tmp_path):
    """Its norm is no number, and clipping by that would make all of them none."""
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: module.bias.register_hook(lambda gradient: gradient * torch.inf) and None
        if getattr(module, "out_features", 0) == 128 else None
    )  # fmt: skip
    try:
        with pytest.raises(InputError, match="1 steps in a row"):
            train(settings(feature_root, max_bad_steps=1), tmp_path, cpu=True)
    finally:
        hook.remove()
    assert "gradients with bad numbers: final_layer.linear.bias (1 of 30)" in (tmp_path / "bad_steps.txt").read_text()


def test_the_report_is_of_the_timesteps_that_were_drawn(feature_root, tmp_path, monkeypatch):
    """Also when a sampler has learnt from them since."""
    given, seen = BatchLosses.losses_at, []

    def spoilt(self, network, batch, drawn):
        losses = given(self, network, batch, drawn)
        seen.append(drawn.timestep.tolist())
        return losses | {"loss": losses["loss"] * torch.nan} if len(seen) > 2 else losses

    monkeypatch.setattr(BatchLosses, "losses_at", spoilt)
    warm = lambda self: True  # noqa: E731
    monkeypatch.setattr("diffusion.timesteps.LossAware.is_warm", property(warm))
    with pytest.raises(InputError, match="1 steps in a row"):
        train(
            settings(feature_root, max_bad_steps=1, timestep_sampling=TimestepConfig("loss_aware")), tmp_path, cpu=True
        )
    told = re.findall(r"timestep (\d+)", (tmp_path / "bad_steps.txt").read_text())
    assert sorted(map(int, told)) == sorted(seen[2]) and seen[2] == seen[3]


def test_the_run_goes_on_after_a_look(feature_root, tmp_path, monkeypatch):
    spoil_steps(monkeypatch, 1, 2)
    with pytest.raises(InputError, match="2 steps in a row"):
        train(settings(feature_root, max_bad_steps=2), tmp_path, cpu=True)
    forget_processes()
    train(settings(feature_root, max_bad_steps=2), tmp_path, cpu=True)
    assert read(tmp_path, 4)["skipped"] == 2


def test_all_processes_leave_the_step_out(feature_root, tmp_path):
    """The second process's batch of the second step has a value that is no number; whole, and sharded."""
    changes = dict(max_steps=3, save_model_steps=1)
    runs = [(changes, "plain", None), (changes | dict(use_fsdp=True), "sharded", None)]
    launch(feature_root, tmp_path, runs, spoil=(1, 2))
    for name in ("plain", "sharded"):
        steps = [read(tmp_path / name, step) for step in (1, 2, 3)]
        assert [step["skipped"] for step in steps] == [0, 1, 1]
        assert equal(steps[0]["model"], steps[1]["model"]) and not equal(steps[1]["model"], steps[2]["model"])
        assert all(tensor.isfinite().all() for tensor in steps[2]["model"].values())


class TestScaler:
    """fp16, which accelerate leaves to GPUs, but torch computes on a CPU, too: gradients overflow until the scale is low."""

    @pytest.fixture(autouse=True)
    def scaled(self, monkeypatch):
        start = trainer.start_accelerator

        def with_scaler(*arguments):
            accelerator = start(*arguments)
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**self.EXPONENT, growth_interval=2)
            accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
            return accelerator

        monkeypatch.setattr(trainer, "start_accelerator", with_scaler)

    EXPONENT = 30  # of the scale to begin with

    def test_steps_that_overflow_are_no_bad_ones(self, feature_root, tmp_path):
        config = settings(
            feature_root, max_steps=20, save_model_steps=1, max_bad_steps=1, optimizer=OptimizerConfig(lr=1e-2)
        )
        train(config, tmp_path, cpu=True)
        states = [read(tmp_path, step) for step in range(21)]
        skipped = [state["skipped"] for state in states]
        assert 0 < skipped[-1] < 20
        for before, after in pairwise(states):
            left_out = after["skipped"] > before["skipped"]
            assert equal(before["model"], after["model"]) == left_out
            if left_out:
                assert after["scaler"]["scale"] == before["scaler"]["scale"] / 2
        assert "skipped," not in (tmp_path / "train_log.log").read_text()

    def test_it_goes_on_to_the_bit(self, feature_root, tmp_path):
        config = settings(feature_root, max_steps=12)
        train(config, tmp_path / "whole", cpu=True)
        forget_processes()
        train(settings(feature_root, max_steps=7), tmp_path / "parts", cpu=True)
        forget_processes()
        train(config, tmp_path / "parts", cpu=True)
        assert equal(read(tmp_path / "whole", 12), read(tmp_path / "parts", 12))
        assert read(tmp_path / "whole", 12)["scaler"]["scale"] != 2.0**self.EXPONENT

    def test_losses_that_are_no_numbers_are_bad_ones(self, feature_root, tmp_path, monkeypatch):
        spoil_steps(monkeypatch, 15, 16)
        with pytest.raises(InputError, match="2 steps in a row"):
            train(settings(feature_root, max_steps=20, max_bad_steps=2), tmp_path, cpu=True)

    def test_a_loss_gone_bad_by_itself_changes_no_weight(self, feature_root, tmp_path, monkeypatch):
        """Infinite, with a gradient that is finite: the scaler sees nothing wrong."""
        given, calls = BatchLosses.losses_at, []

        def spoilt(self, network, batch, drawn):
            losses = given(self, network, batch, drawn)
            calls.append(1)
            return losses | {"loss": losses["loss"] + torch.inf} if len(calls) == 17 else losses

        monkeypatch.setattr(BatchLosses, "losses_at", spoilt)
        train(settings(feature_root, max_steps=18, save_model_steps=1), tmp_path, cpu=True)
        before, after, later = (read(tmp_path, step) for step in (16, 17, 18))
        assert after["skipped"] == before["skipped"] + 1
        assert equal([before[part] for part in ("model", "ema", "optimizer")],
                     [after[part] for part in ("model", "ema", "optimizer")])  # fmt: skip
        assert not equal(after["model"], later["model"]) or later["skipped"] > after["skipped"]

    def test_a_scale_that_cannot_fall_further_is_a_bad_sign(self, feature_root, tmp_path, monkeypatch):
        monkeypatch.setattr(state.RunState, "scale_is_high", False)
        with pytest.raises(InputError, match="1 steps in a row"):
            train(settings(feature_root, max_bad_steps=1), tmp_path, cpu=True)
