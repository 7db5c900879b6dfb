"""Devices, and advice on cores, precision and batch size."""

from __future__ import annotations

import pytest
import torch

from diffusion.formats import PRECISIONS
from diffusion.utils import hardware
from diffusion.utils.errors import InputError

CPU = torch.device("cpu")


def test_idle_cores_are_named(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(hardware, "count_cores", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert hardware.describe_device(CPU, 1) == "cpu, 1 threads a process of 16 cores; OMP_NUM_THREADS 16 would take all"
    assert hardware.describe_device(CPU, 8).endswith("; --num_cpu_threads_per_process 2 would take all")
    assert hardware.describe_device(CPU, 16) == "cpu, 1 threads a process of 16 cores"
    assert hardware.describe_device(torch.device("mps"), 1) == "mps"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of eight on four machines
    assert hardware.describe_device(CPU, 8).endswith("; --num_cpu_threads_per_process 8 would take all")


def test_windows_per_pass_by_device_and_size():
    assert [hardware.windows_per_pass(CPU, side) for side in (128, 64, 32)] == [1, 4, 16]
    assert hardware.windows_per_pass(torch.device("cuda"), 128) == 8


def test_largest_batch_leaves_a_tenth_of_the_memory():
    """10 stay, an image takes 2: of 0.9 x 100, 80 are left for 40."""
    assert hardware.largest_batch(batch=4, resident=10, peak=18, total=100) == 40
    assert hardware.largest_batch(batch=40, resident=10, peak=90, total=100) == 40


def test_a_larger_batch_is_suggested_where_twice_as_many_fit(monkeypatch):
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * gib)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 8 * gib)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10 * gib)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * gib, 141 * gib))  # others hold the rest
    advice = hardware.suggest_batch_size(16, torch.device("cuda"))
    assert advice == "a pass of 16 took 8.0 of 80 GiB: --batch-size 272 would fit"
    assert hardware.suggest_batch_size(16, torch.device("cuda"), copies=2 * gib).endswith(" 528 would fit")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 60 * gib)
    assert hardware.suggest_batch_size(16, torch.device("cuda")) == hardware.suggest_batch_size(16, CPU) == ""


def test_bf16_is_suggested_where_the_hardware_has_it(monkeypatch):
    monkeypatch.setattr(hardware, "has_bf16", lambda device: True)
    assert hardware.describe_device(torch.device("cuda", 1), 1, "fp32") == "cuda:1; --precision bf16 is faster here"
    assert (
        hardware.describe_device(torch.device("cuda", 1), 1, "bf16")
        == hardware.describe_device(torch.device("cuda", 1), 1)
        == "cuda:1"
    )


def test_a_launcher_for_the_cpu_decides_the_device(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert hardware.pick_device("auto").type == "cpu"
    with pytest.raises(InputError, match="--device cuda contradicts ACCELERATE_USE_CPU=True"):
        hardware.pick_device("cuda")


@pytest.mark.parametrize(("name", "kept"), [("cpu", [True]), ("cuda", [])])
def test_a_cpu_keeps_freed_memory(monkeypatch, name, kept):
    calls = []
    monkeypatch.setattr(hardware, "keep_freed_memory", lambda: calls.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.prepare_device(name).type == name and calls == kept


def test_precisions_have_types_of_torch():
    assert {name: hardware.torch_dtype(name).itemsize for name in PRECISIONS} == {"fp32": 4, "bf16": 2, "fp16": 2}


def test_a_tensor_on_its_device_is_not_copied():
    tensor = torch.ones(3)
    assert hardware.to_device(tensor, CPU) is tensor


def test_a_compiler_that_a_variable_names_comes_first(monkeypatch, tmp_path):
    for name in ("g++", "mine"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("CXX", "mine")
    assert hardware.find_compiler() == str(tmp_path / "mine")
    monkeypatch.delenv("CXX")
    assert hardware.find_compiler() == str(tmp_path / "g++")
    monkeypatch.setenv("PATH", "")
    assert hardware.find_compiler() is None


def test_devices_are_named_by_text_or_by_torch(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:1", CPU, torch.device("cuda", 1)):
        assert hardware.pick_device(name) == torch.device(name)
    assert hardware.pick_device("cpu:0") == CPU and hardware.pick_device("auto") == torch.device("cuda")
    with pytest.raises(InputError, match="--device cuda:2: this machine has 2 GPUs, counted from 0"):
        hardware.pick_device("cuda:2")
    for name in ("gpu", "cuda:x", "cuda:-1", "cpu:1", "meta", "", "auto:1"):
        with pytest.raises(InputError, match="expected auto, cpu, cuda, cuda:N or mps"):
            hardware.pick_device(name)
    with pytest.raises(InputError, match="--precision float16: expected fp32, bf16, fp16"):
        hardware.torch_dtype("float16")
