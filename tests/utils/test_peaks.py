"""What known GPUs compute at most."""

from __future__ import annotations

import pytest

from diffusion.utils.peaks import peak_flops


@pytest.mark.parametrize(
    ("name", "bf16", "fp16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 312),
        ("NVIDIA A100 80GB PCIe", 312, 312),
        ("NVIDIA H100 80GB HBM3", 989.5, 989.5),
        ("NVIDIA H100 PCIe", 756.5, 756.5),
        ("NVIDIA H100 NVL", 835.5, 835.5),
        ("NVIDIA H200", 989.5, 989.5),
        ("NVIDIA H200 NVL", 835.5, 835.5),
        ("NVIDIA GH200 480GB", 989.5, 989.5),
        ("NVIDIA L40S", 362, 362),
        ("NVIDIA L40", 181, 181),
        ("NVIDIA L4", 121, 121),
        ("NVIDIA RTX A6000", 154.8, 154.8),
        ("NVIDIA A10", 125, 125),
        ("NVIDIA GeForce RTX 4090", 165.2, 165.2),
        ("NVIDIA GeForce RTX 3090", 71, 71),
        ("NVIDIA GeForce RTX 3090 Ti", 80, 80),
        ("Tesla V100-SXM2-32GB", None, 125),
        ("Tesla V100-PCIE-16GB", None, 112),
        ("Tesla V100S-PCIE-32GB", None, 130),
        ("Tesla T4", None, 65),
        ("NVIDIA A10G", None, None),
        ("NVIDIA GeForce RTX 4090 D", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None, None),
        ("AMD Instinct MI300X", None, None),
    ],
)
def test_a_gpu_is_known_by_its_name(name, bf16, fp16):
    for precision, rate in (("bf16", bf16), ("fp16", fp16), ("no", None)):
        assert peak_flops(name, precision) == (None if rate is None else pytest.approx(rate * 1e12))
