"""What a person is told about cores, precision and batch size, where others would be faster."""

from __future__ import annotations

import os

import torch

from diffusion.cli.parser import cores
from diffusion.utils.precision import has_bf16

ROOM = 0.9  # of a GPU's free memory; the rest goes to fragments and to what other libraries take


def processor(device: torch.device, processes: int, precision: str | None = None) -> str:
    """The device; of a CPU also how much of it is used, since launchers give a process one thread unless told.

    processes: of all machines; precision: the command's own, where it has one to choose.
    """
    half = "; --precision bf16 is faster here" if precision == "fp32" and has_bf16(device) else ""
    if device.type != "cpu":
        return f"{device}{half}"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    threads, share = torch.get_num_threads(), max(1, cores() // here)
    how = "OMP_NUM_THREADS" if processes == 1 else "--num_cpu_threads_per_process"
    advice = f"; {how} {share} would take all" if threads < share else ""
    return f"cpu, {threads} threads a process of {cores()} cores{advice}{half}"


def windows_at_once(device: torch.device, side: int) -> int:
    """Windows of `side` cells in a pass. Eight keep a GPU busy, 4096 image tokens a CPU: one window of 1024 pixels, 16 of 256."""
    return 8 if device.type != "cpu" else max(1, 4096 // (side // 2) ** 2)


def larger_batch(batch: int, device: torch.device, copies: int = 0) -> str:
    """After a sample of `batch`: how many would fit, if twice as many do; nothing where memory is not a GPU's own.

    copies: bytes of the half-precision weights that autocast held until then.
    """
    if device.type != "cuda":
        return ""
    resident, peak = torch.cuda.memory_allocated(device) + copies, torch.cuda.max_memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)  # what is not others'
    fits = fitting(batch, resident, peak, free)
    if fits < 2 * batch or peak <= resident:
        return ""
    return f"a pass of {batch} took {peak / 2**30:.1f} of {free / 2**30:.0f} GiB: --batch_size {fits} would fit"


def fitting(batch: int, resident: int, peak: int, total: int) -> int:
    """The largest batch for `total` bytes, by what a pass of `batch` took beyond what stays there."""
    return int(batch * (ROOM * total - resident) / max(1, peak - resident))
