"""What a person is told about cores and batch size, where others would be faster."""

from __future__ import annotations

import torch

from diffusion.cli import cores

ROOM = 0.9  # of a GPU's memory; the rest goes to fragments and to what other libraries take


def processor(device: torch.device, processes: int) -> str:
    """The device; of a CPU also how much of it is used, since launchers give a process one thread unless told."""
    if device.type != "cpu":
        return str(device)
    threads, share = torch.get_num_threads(), max(1, cores() // processes)
    how = "OMP_NUM_THREADS" if processes == 1 else "--num_cpu_threads_per_process"
    advice = f"; {how} {share} would take all" if threads < share else ""
    return f"cpu, {threads} threads a process of {cores()} cores{advice}"


def larger_batch(batch: int, device: torch.device) -> str:
    """After a pass of `batch`: how many would fit, if twice as many do; nothing where memory is not a GPU's own."""
    if device.type != "cuda":
        return ""
    resident, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    total = torch.cuda.get_device_properties(device).total_memory
    fits = fitting(batch, resident, peak, total)
    if fits < 2 * batch:
        return ""
    return f"a pass of {batch} took {peak / 2**30:.1f} of {total / 2**30:.0f} GiB: --batch_size {fits} would fit"


def fitting(batch: int, resident: int, peak: int, total: int) -> int:
    """The largest batch for a GPU of `total` bytes, by what a pass of `batch` took beyond what stays there."""
    return int(batch * (ROOM * total - resident) / max(1, peak - resident))
