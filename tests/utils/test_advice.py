"""What is said of cores, precision and batch size."""

from __future__ import annotations

import torch

from diffusion import advice

CPU = torch.device("cpu")


def test_cores_left_idle_are_named(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(advice, "cores", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert advice.processor(CPU, 1) == "cpu, 1 threads a process of 16 cores; OMP_NUM_THREADS 16 would take all"
    assert advice.processor(CPU, 8).endswith("; --num_cpu_threads_per_process 2 would take all")
    assert advice.processor(CPU, 16) == "cpu, 1 threads a process of 16 cores"
    assert advice.processor(torch.device("mps"), 1) == "mps"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # of eight on four machines
    assert advice.processor(CPU, 8).endswith("; --num_cpu_threads_per_process 8 would take all")


def test_windows_at_once():
    assert [advice.windows_at_once(CPU, side) for side in (128, 64, 32)] == [1, 4, 16]
    assert advice.windows_at_once(torch.device("cuda"), 128) == 8


def test_a_batch_that_fits():
    """10 stay, an image takes 2: of 0.9 x 100, 80 are left for 40."""
    assert advice.fitting(batch=4, resident=10, peak=18, total=100) == 40
    assert advice.fitting(batch=40, resident=10, peak=90, total=100) == 40


def test_a_larger_batch_is_told_where_twice_as_many_fit(monkeypatch):
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * gib)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 8 * gib)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10 * gib)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * gib, 141 * gib))  # others hold the rest
    told = advice.larger_batch(16, torch.device("cuda"))
    assert told == "a pass of 16 took 8.0 of 80 GiB: --batch_size 272 would fit"
    assert advice.larger_batch(16, torch.device("cuda"), copies=2 * gib).endswith(" 528 would fit")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 60 * gib)
    assert advice.larger_batch(16, torch.device("cuda")) == advice.larger_batch(16, CPU) == ""


def test_a_faster_precision_is_named(monkeypatch):
    monkeypatch.setattr(advice, "has_bf16", lambda device: True)
    assert advice.processor(torch.device("cuda", 1), 1, "fp32") == "cuda:1; --precision bf16 is faster here"
    assert (
        advice.processor(torch.device("cuda", 1), 1, "bf16") == advice.processor(torch.device("cuda", 1), 1) == "cuda:1"
    )
