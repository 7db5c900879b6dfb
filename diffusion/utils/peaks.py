"""The most that known GPUs compute: dense matrix products in bf16 and fp16, summed in fp32, as their vendors state."""

from __future__ import annotations

import re

# Pattern of the name that torch gives a GPU, the more particular first -> TFLOP/s in bf16 and in fp16; None: it has no units for
# that. Data sheets that state the rate "with sparsity" are halved.
PEAKS: tuple[tuple[str, float | None, float | None], ...] = (
    (r"B200", 2250, 2250),  # NVIDIA HGX data sheet: 36 PFLOPS of eight, sparse
    (r"GH200", 989.5, 989.5),  # NVIDIA GH200 data sheet: 1979, sparse
    (r"H200 NVL", 835.5, 835.5),  # NVIDIA H200 data sheet: 1671, sparse
    (r"H200", 989.5, 989.5),  # NVIDIA H200 data sheet, SXM: 1979, sparse
    (r"H100 NVL", 835.5, 835.5),  # NVIDIA H100 data sheet: 1671, sparse
    (r"H100 PCIe", 756.5, 756.5),  # NVIDIA H100 data sheet of 2022, PCIe: 1513, sparse
    (r"H100", 989.5, 989.5),  # NVIDIA H100 data sheet, SXM: 1979, sparse
    (r"A100", 312, 312),  # NVIDIA A100 data sheet, SXM and PCIe
    (r"A30", 165, 165),  # NVIDIA A30 data sheet
    (r"A40", 149.7, 149.7),  # NVIDIA A40 data sheet
    (r"A10", 125, 125),  # NVIDIA A10 data sheet
    (r"RTX A6000", 154.8, 154.8),  # NVIDIA RTX A6000 data sheet: 309.7, sparse
    (r"L40S", 362, 362),  # NVIDIA L40S data sheet
    (r"L40", 181, 181),  # NVIDIA L40 data sheet
    (r"L4", 121, 121),  # NVIDIA L4 data sheet: 242, sparse
    (r"RTX 6000 Ada Generation", 364.2, 364.2),  # NVIDIA Ada architecture white paper, appendix
    (r"RTX 5090$", 209.5, 209.5),  # NVIDIA RTX Blackwell architecture white paper, appendix
    (r"RTX 4090$", 165.2, 165.2),  # NVIDIA Ada architecture white paper, appendix A
    (r"RTX 3090 Ti$", 80, 80),  # NVIDIA Ampere GA102 architecture white paper, appendix
    (r"RTX 3090$", 71, 71),  # NVIDIA Ampere GA102 architecture white paper, appendix
    (r"V100S", None, 130),  # NVIDIA V100 data sheet
    (r"V100-PCIE|V100 PCIe", None, 112),  # NVIDIA V100 data sheet
    (r"V100", None, 125),  # NVIDIA V100 data sheet, SXM2
    (r"T4", None, 65),  # NVIDIA T4 data sheet
)
NOT_A_WHOLE_GPU = re.compile(r"\bMIG\b|Laptop|Max-Q")  # parts of one, and such as are clocked lower


def peak_flops(name: str, precision: str) -> float | None:
    """Return the operations a second of a GPU in `bf16` or `fp16`; None for one that is not known, and for other precisions."""
    if precision not in ("bf16", "fp16") or NOT_A_WHOLE_GPU.search(name):
        return None
    for pattern, bf16, fp16 in PEAKS:
        if re.search(rf"\b(?:{pattern})(?![\w])", name):
            rate = bf16 if precision == "bf16" else fp16
            return None if rate is None else rate * 1e12
    return None
