"""The parts that `pixcell bench` measures: each gives its rows, from the options, the device and the rounds."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.case import Case
from benchmarks.table import Row
from diffusion.utils.hardware import count_cores, has_bf16, windows_per_pass

BATCHES = {"train": 8, "sample": 4, "floor": 8}
PATCHES = {"extract": 24, "data": 1024}
ROUNDS = {"train": 8, "sample": 3, "panorama": 2, "extract": 3, "data": 3, "startup": 3, "busy": 3}
STEPS = {"sample": 20, "panorama": 1, "floor": 20}


@dataclass(frozen=True)
class Options:
    """What `pixcell bench` was asked for; a part has its own defaults for what is None."""

    network: str | None
    size: int
    batch_size: int | None
    steps: int | None
    guidance_interval: tuple[float, float]
    precision: str
    compile: bool
    plain: bool
    root: Path
    dataset: str | None
    vae: str
    encoder: str
    count: int | None
    index_count: int
    seconds: float
    scratch: Path | None
    peak: float
    bandwidth: float


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return what figures depend on: the processor, its cores and threads, and the version of torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    threads = str(torch.get_num_threads())
    return {"device": name, "cores": str(count_cores()), "threads": threads, "torch": torch.__version__}


def processor_name() -> str:
    """Return the processor's name, or its architecture where the system does not say more."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def make_case(options: Options, device: torch.device, part: str) -> Case:
    """Return the network and inputs of a part, with its own defaults for what the options leave open."""
    half = part == "floor" or (device.type == "cuda" and has_bf16(device))
    precision = options.precision if options.precision != "auto" else "bf16" if half else "fp32"
    network = options.network or ("tiny" if part == "panorama" else "B")
    batch = options.batch_size or BATCHES.get(part) or windows_per_pass(device, options.size // 8)
    return Case(network, options.size, batch, device, precision)


def train(options: Options, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure the forward pass, the training step and its memory."""
    from benchmarks.training import forward_rows, memory_rows, step_rows

    case = make_case(options, device, "train")
    yield from forward_rows(case, rounds, options.compile)
    yield from step_rows(case, rounds)
    if options.compile:
        yield from step_rows(case, rounds, compiled=True)
    yield from memory_rows(case)


def sample(options: Options, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure sampling."""
    from benchmarks.sampling import sampling_rows

    steps, (low, high) = options.steps or STEPS["sample"], options.guidance_interval
    case = make_case(options, device, "sample")
    yield from sampling_rows(case, steps, rounds, (low, high), options.compile, options.plain)


def panorama(options: Options, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure large pictures."""
    from benchmarks.panorama import panorama_rows

    yield from panorama_rows(make_case(options, device, "panorama"), options.steps or STEPS["panorama"], rounds)


def extract(options: Options, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure the extraction of features."""
    from benchmarks.extraction import SYNTHETIC_SET, Source, extraction_rows, make_patches

    with tempfile.TemporaryDirectory(prefix="bench_", dir=options.scratch) as folder:
        count, root = options.count or PATCHES["extract"], options.root if options.dataset else Path(folder)
        if not options.dataset:
            make_patches(root, count)
        source = Source(root, options.dataset or SYNTHETIC_SET, options.vae, options.encoder, device)
        yield from extraction_rows(source, Path(folder) / "features", count, rounds)


def data(options: Options, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure reading for training, and look-ups in the index."""
    from benchmarks.lookups import lookup_rows
    from benchmarks.reading import reading_rows

    with tempfile.TemporaryDirectory(prefix="bench_", dir=options.scratch) as folder:
        yield from reading_rows(Path(folder), options.count or PATCHES["data"], options.seconds, rounds)
        yield from lookup_rows(Path(folder), options.index_count)


def floor(options: Options, device: torch.device, rounds: int) -> Iterator[Row]:
    """Count the least time of a step and a sample."""
    from benchmarks.roofline import floor_rows

    case = make_case(options, torch.device("cpu"), "floor")
    yield from floor_rows(case, options.steps or STEPS["floor"], 1e12 * options.peak, 1e9 * options.bandwidth)


def startup(options: Options, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure imports and --help."""
    from benchmarks.startup import startup_rows

    yield from startup_rows(rounds)


def busy(options: Options, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure a training step beside other programs."""
    from benchmarks.sharing import sharing_rows

    yield from sharing_rows(
        Case(options.network or "tiny", options.size, options.batch_size or 8, torch.device("cpu"), "fp32"), rounds
    )


BENCHMARKS: dict[str, Callable[[Options, torch.device, int], Iterator[Row]]] = {
    "train": train,
    "sample": sample,
    "panorama": panorama,
    "extract": extract,
    "data": data,
    "startup": startup,
    "busy": busy,
    "floor": floor,
}
