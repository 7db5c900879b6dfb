"""Seconds and bytes of candidates, run in turns so that a machine which slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from diffusion.utils.memory import peak_bytes

Seconds = Mapping[str, Sequence[float]]  # of each candidate, one a round


def interleave(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, warm: bool = True
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Run all candidates in every round; return the seconds of each by round, and its first answer.

    warm: begin with a round that does not count; False for work so long that its first time is like any other.
    """
    answers: dict[str, Any] = {}
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + warm):
        for name, action in candidates.items():
            seconds = time_once(lambda name=name, action=action: answers.setdefault(name, action()), device)
            if turn >= warm:
                taken[name].append(seconds)
    return taken, answers


def time_once(action: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of an action: by the GPU's own events where it has some, else by the clock once the device is done."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        action()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    began = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all work that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def run_in_fresh_process(action: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a module's function in a fresh process, after this one has returned its unused GPU memory."""
    torch.cuda.empty_cache()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(action, *arguments).result()


def measure_peak_memory(action: Callable[..., Any], *arguments: Any) -> float:
    """Return the peak of bytes that a function, whose imports stand at the top of its module, adds to a fresh process.

    On a GPU: those that torch allocates there. 0 where the system does not say.
    """
    return run_in_fresh_process(_added_memory, action, *arguments)


def _added_memory(action: Callable[..., Any], *arguments: Any) -> float:
    before = peak_bytes()
    action(*arguments)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else max(0, peak_bytes() - before)
