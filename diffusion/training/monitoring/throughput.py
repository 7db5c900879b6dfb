"""How much of a processor a run uses: operations a second, and their share of the most that the processor computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffusion.utils.peaks import peak_flops

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Throughput:
    """What turns samples a second into operations a second. flops_per_sample: None where the task does not know.

    peak: operations a second that a processor can do; None where that is not known.
    """

    flops_per_sample: float | None
    peak: float | None
    processes: int

    @classmethod
    def of(cls, flops_per_sample: float | None, accelerator: Accelerator) -> Throughput:
        """Return that of the processors which an Accelerator has, in its precision."""
        device, peak = accelerator.device, None
        if device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(device), accelerator.mixed_precision)
        return cls(flops_per_sample, peak, accelerator.num_processes)

    def values(self, samples_per_second: float) -> dict[str, float]:
        """Return `tflops` of each processor, and their share `mfu` of the peak; none where they are not known."""
        if self.flops_per_sample is None:
            return {}
        rate = samples_per_second * self.flops_per_sample / self.processes
        return {"tflops": rate / 1e12, **({} if self.peak is None else {"mfu": rate / self.peak})}


def describe_throughput(values: Mapping[str, float]) -> str:
    """Return the values in words, `, 120.5 TFLOP/s (38.6 % of the peak)`; nothing for none."""
    if "tflops" not in values:
        return ""
    share = f" ({100 * values['mfu']:.1f} % of the peak)" if "mfu" in values else ""
    return f", {values['tflops']:.3g} TFLOP/s{share}"
