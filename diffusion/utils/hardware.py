"""The processor that networks run on: cores, devices, precisions, and what would make it faster."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from diffusion.formats import PRECISIONS
from diffusion.utils.errors import InputError
from diffusion.utils.launch import is_set
from diffusion.utils.memory import keep_freed_memory

if TYPE_CHECKING:
    import torch

# Variables of libraries below, which change how numbers are computed and which no config overrules.
NUMERIC_VARIABLES = (
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT"),
    *("DISABLE_ADDMM_CUDA_LT", "TORCH_CUDNN_V8_API_DISABLED", "TORCH_CUDNN_SDPA_ENABLED", "PYTORCH_TUNABLEOP_ENABLED"),
    *("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE", "PYTORCH_MPS_FAST_MATH", "PYTORCH_MPS_PREFER_METAL"),
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    *("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE", "XLA_USE_BF16"),
)
DEVICES = ("auto", "cpu", "cuda", "mps")
COMPILERS = ("g++", "gcc", "clang++", "clang", "cl")  # of C++, in the order in which torch takes them
USABLE_MEMORY = 0.9  # of a GPU's free memory; the rest goes to fragments and to what other libraries take


def count_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would take, the one that CXX or CC names first; None where none is here."""
    named = [name for variable in ("CXX", "CC") if (name := os.environ.get(variable))]
    return next((path for name in (*named, *COMPILERS) if (path := shutil.which(name))), None)


def pick_device(name: str | torch.device) -> torch.device:
    """Return the torch device for a --device value, or for a device: auto, cpu, cuda, cuda:N or mps.

    Raises InputError for another text, when the device asked for is not on this machine, or accelerate's launcher names
    another.
    """
    import torch

    name = str(name)
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and not (number.isdecimal() and (kind == "cuda" or number == "0"))):
        raise InputError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    if kind != "cuda":
        name, number = kind, ""
    if is_set("ACCELERATE_USE_CPU"):  # accelerate launch --cpu
        if name not in ("auto", "cpu"):
            raise InputError(
                f"--device {name} contradicts ACCELERATE_USE_CPU={os.environ['ACCELERATE_USE_CPU']}; unset it"
            )
        name = "cpu"

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = kind = next(each for each, is_there in available.items() if is_there)
    if name != "cpu" and not available[kind]:
        raise InputError(f"--device {name}: this machine has none that torch can use; take --device auto or cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device(name)


def prepare_device(name: str | torch.device) -> torch.device:
    """Return the torch device for a --device value, and set this process up for it: a CPU keeps freed memory.

    Raises InputError as pick_device does.
    """
    device = pick_device(name)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device. The host does not wait for the copy, as it otherwise would for all that a GPU has yet to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def torch_dtype(precision: str) -> torch.dtype:
    """Return the torch type of one of `formats.PRECISIONS`. Raises InputError for another text."""
    import torch

    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: expected {', '.join(PRECISIONS)}")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def has_bf16(device: torch.device | str) -> bool:
    """Tell whether a device multiplies bfloat16 matrices in hardware; elsewhere it is many times slower than float32."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if kind == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def describe_device(device: torch.device, processes: int, precision: str | None = None) -> str:
    """Return the device in words, and what would be faster: more threads on a CPU, bf16 where the hardware has it.

    Launchers give a process one thread unless the user names a number. processes: of all machines; precision: the
    command's own, where it has one to choose.
    """
    import torch

    half = "; --precision bf16 is faster here" if precision == "fp32" and has_bf16(device) else ""
    if device.type != "cpu":
        return f"{device}{half}"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    threads, share = torch.get_num_threads(), max(1, count_cores() // here)
    how = "OMP_NUM_THREADS" if processes == 1 else "--num_cpu_threads_per_process"
    advice = f"; {how} {share} would take all" if threads < share else ""
    return f"cpu, {threads} threads a process of {count_cores()} cores{advice}{half}"


def windows_per_pass(device: torch.device, side: int) -> int:
    """Return how many windows of `side` cells to compute in one pass.

    Eight keep a GPU busy, 4096 image tokens a CPU: one window of 1024 pixels, 16 of 256.
    """
    return 8 if device.type != "cpu" else max(1, 4096 // (side // 2) ** 2)


def suggest_batch_size(batch: int, device: torch.device, copies: int = 0) -> str:
    """Return advice after a pass of `batch`: how many would fit, if at least twice as many do; else an empty text.

    Only a GPU's memory is its own. copies: bytes of the half-precision weights that autocast kept during the pass.
    """
    import torch

    if device.type != "cuda":
        return ""
    resident, peak = torch.cuda.memory_allocated(device) + copies, torch.cuda.max_memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)  # not taken by other processes
    fits = largest_batch(batch, resident, peak, free)
    if fits < 2 * batch or peak <= resident:
        return ""
    return f"a pass of {batch} took {peak / 2**30:.1f} of {free / 2**30:.0f} GiB: --batch-size {fits} would fit"


def largest_batch(batch: int, resident: int, peak: int, total: int) -> int:
    """Return the largest batch for `total` bytes, from what a pass of `batch` took beyond the resident bytes."""
    return int(batch * (USABLE_MEMORY * total - resident) / max(1, peak - resident))


def empty_cache() -> None:
    """Return unused memory of the accelerator to it, after a job that did not fit."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
