"""Seconds and bytes of candidates that take turns, so that a machine which slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from diffusion.utils.memory import peak_bytes

Seconds = Mapping[str, Sequence[float]]  # of each candidate, one a round


def take_turns(
    candidates: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, warm: bool = True
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every candidate in every round, and its first answers.

    warm: after a round that does not count; without, for what takes so long that the first time is as any other.
    """
    answers: dict[str, Any] = {}
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + warm):
        for name, action in candidates.items():
            seconds = seconds_of(lambda name=name, action=action: answers.setdefault(name, action()), device)
            if turn >= warm:
                taken[name].append(seconds)
    return taken, answers


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """By the GPU's own events where there are some, else by the clock, once the device is done."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        action()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    began = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def alone(action: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module answers in a fresh process; a GPU is left what this one only keeps for later."""
    torch.cuda.empty_cache()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(action, *arguments).result()


def peak_alone(action: Callable[..., Any], *arguments: Any) -> float:
    """Bytes that a function of a module, whose imports stand at its top, adds to a fresh process at most.

    On a GPU: those that torch allocates there. 0 where the system does not tell.
    """
    return alone(_growth, action, *arguments)


def _growth(action: Callable[..., Any], *arguments: Any) -> float:
    before = peak_bytes()
    action(*arguments)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else max(0, peak_bytes() - before)
