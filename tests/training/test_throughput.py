"""Operations a second, in the log and the curves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from runs import logged, settings

from diffusion.model.flops import training_flops
from diffusion.tasks.denoising.task import Denoising
from diffusion.tasks.registry import build_task
from diffusion.training.monitoring.throughput import Throughput, describe_throughput
from diffusion.training.trainer import train


def test_operations_are_those_of_a_processor_and_their_share_of_its_peak():
    values = Throughput(2e12, 312e12, processes=4).values(200.0)
    assert values == pytest.approx({"tflops": 100.0, "mfu": 100 / 312})
    assert describe_throughput(values) == ", 100 TFLOP/s (32.1 % of the peak)"
    unknown = Throughput(2e9, None, processes=1).values(3.0)
    assert unknown == pytest.approx({"tflops": 0.006}) and describe_throughput(unknown) == ", 0.006 TFLOP/s"
    assert Throughput(None, 312e12, processes=1).values(3.0) == {} and describe_throughput({}) == ""


@pytest.mark.parametrize(
    ("kind", "precision", "peak"), [("cuda", "bf16", 312e12), ("cuda", "no", None), ("cpu", "bf16", None)]
)
def test_a_peak_is_that_of_the_device_in_the_precision(kind, precision, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    accelerator = SimpleNamespace(device=torch.device(kind), mixed_precision=precision, num_processes=2)
    assert Throughput.of(1.0, accelerator).peak == peak


def test_a_run_tells_of_its_operations(feature_root, tmp_path):
    config = settings(feature_root, report_to="tensorboard", max_steps=2)
    task = build_task(config)
    network, _ = task.build_network(None)
    assert task.flops_per_sample() == training_flops(network.config)
    assert train(config, task, tmp_path / "run", cpu=True)
    tflops, rates = logged(tmp_path / "run", "train/tflops"), logged(tmp_path / "run", "train/samples_per_second")
    assert tflops[2] == pytest.approx(rates[2] * training_flops(network.config) / 1e12, rel=1e-5)
    assert " TFLOP/s, data wait" in (tmp_path / "run/train_log.log").read_text()


def test_a_task_that_trains_something_else_tells_nothing(feature_root):
    class Other(Denoising):
        def build_network(self, load_from):
            return super().build_network(load_from)

    assert Other(settings(feature_root)).flops_per_sample() is None
    assert Denoising(settings(feature_root, freeze=("y_embedder",))).flops_per_sample() is None
