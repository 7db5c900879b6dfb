"""Measure this machine: network, training step, sampling, large pictures, extraction, reading, start, a busy CPU.

Everything is timed in turns with a peer, since machines slow down and speed up: what counts is the ratio. Peers are
diffusers' PixArt with its DPM-Solver, AdamW and EMAModel, loops that do one thing at a time, and the ways of the published
code. Networks have random weights; no data is needed. docs/PERFORMANCE.md has the figures and what they mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import finite_float, output_file, positive_float, positive_int, run, tool_parser
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.hardware import count_cores, prepare_device

if TYPE_CHECKING:
    import torch
    from benchmarks.case import Case
    from benchmarks.table import Row

EXAMPLES = """  python tools/bench.py all --json bench.json
  python tools/bench.py train --size XL --pixels 512 --batch_size 16 --compile
  python tools/bench.py extract --root data/demo --dataset demo --encoder mobilenetv2"""
BATCHES = {"train": 8, "sample": 4, "floor": 8}
PATCHES = {"extract": 24, "data": 1024}
ROUNDS = {"train": 8, "sample": 3, "panorama": 2, "extract": 3, "data": 3, "startup": 3, "busy": 3}
STEPS = {"sample": 20, "panorama": 1, "floor": 20}


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__ or "", EXAMPLES, draws=False)
    add = parser.add_argument
    what = "what to measure; floor only counts: the least time of a step and a sample on a processor of --peak, --bandwidth"
    add("part", nargs="?", choices=("all", *BENCHMARKS), default="all", help=what)
    add("--size", choices=("tiny", "B", "XL"), help="of the network [B; of panorama tiny]")
    add("--pixels", type=int, choices=(256, 512, 1024), default=256, help="a side of what the network denoises")
    add("--batch_size", type=positive_int, help="images, or windows, in one pass [8, sample 4, panorama as sample_4k]")
    add("--steps", type=positive_int, help="of the solver [20, panorama 1]")
    add(
        "--interval",
        type=finite_float,
        nargs=2,
        default=(0.3, 5.0),
        metavar=("LO", "HI"),
        help="noise levels to guide between [0.3 to 5, which a sweep chose for the demo's network]",
    )
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on a GPU that has it")
    add("--compile", action="store_true", help="ours through torch.compile, too; takes a compiler, and minutes")
    add("--plain", action="store_true", help="sample: the loop of one image and one pass at a time, too")
    add("--rounds", type=positive_int, help="whose median is shown [train 8, panorama 2, others 3]")
    add("--dataset", help="data set of ROOT's index to extract [patches made here]")
    add("--vae", default="tiny", help="as for extract_features")
    add("--encoder", default="", help="as for extract_features [MobileNetV2 with random weights]")
    add("--patches", type=positive_int, help="to extract, and to read from [24, 1024; each takes 4 MiB of disk]")
    add("--names", type=positive_int, default=3_000_000, help="of the index; 120 bytes of disk each")
    add("--seconds", type=positive_float, default=3.0, help="of each reading with a warm cache")
    add("--scratch", type=Path, help="folder for temporary files [the system's]")
    add("--peak", type=positive_float, default=989.0, help="floor: TFLOP/s of products [an H100's in bf16, dense]")
    add("--bandwidth", type=positive_float, default=3350.0, help="floor: GB/s of memory [an H100's]")
    add("--json", type=output_file, help="write the figures here, too")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = prepare_device(args.device)
    machine = describe_machine(device)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)

    from benchmarks.table import format_row, format_rows

    rows: list[Row] = []
    for part in [part for part in BENCHMARKS if part != "floor"] if args.part == "all" else [args.part]:
        print(f"measuring {part}", file=sys.stderr, flush=True)
        for row in BENCHMARKS[part](args, device, args.rounds or ROUNDS.get(part, 1)):
            rows.append(row)
            print(format_row(row), file=sys.stderr, flush=True)
            if args.json:  # complete at any time: what was measured outlives what is stopped
                report = {"machine": machine, "rows": [dataclasses.asdict(each) for each in rows]}
                atomic_write_bytes(args.json, (json.dumps(report, indent=1) + "\n").encode())
    print(format_rows(rows))


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return what figures depend on: the processor, its cores and threads, and the version of torch."""
    import torch

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


def make_case(args: argparse.Namespace, device: torch.device, part: str) -> Case:
    """Return the network and inputs of a part, with its own defaults for what the options leave open."""
    from benchmarks.case import Case

    from diffusion.utils.hardware import has_bf16, windows_per_pass

    half = part == "floor" or (device.type == "cuda" and has_bf16(device))
    precision = args.precision if args.precision != "auto" else "bf16" if half else "fp32"
    size = args.size or ("tiny" if part == "panorama" else "B")
    batch = args.batch_size or BATCHES.get(part) or windows_per_pass(device, args.pixels // 8)
    return Case(size, args.pixels, batch, device, precision)


def train(args: argparse.Namespace, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure the forward pass, the training step and its memory."""
    from benchmarks.training import forward_rows, memory_rows, step_rows

    case = make_case(args, device, "train")
    yield from forward_rows(case, rounds, args.compile)
    yield from step_rows(case, rounds)
    if args.compile:
        yield from step_rows(case, rounds, compiled=True)
    yield from memory_rows(case)


def sample(args: argparse.Namespace, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure sampling."""
    from benchmarks.sampling import sampling_rows

    steps, (low, high) = args.steps or STEPS["sample"], args.interval
    case = make_case(args, device, "sample")
    yield from sampling_rows(case, steps, rounds, (low, high), args.compile, args.plain)


def panorama(args: argparse.Namespace, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure large pictures."""
    from benchmarks.panorama import panorama_rows

    yield from panorama_rows(make_case(args, device, "panorama"), args.steps or STEPS["panorama"], rounds)


def extract(args: argparse.Namespace, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure the extraction of features."""
    from benchmarks.extraction import SYNTHETIC_SET, Source, extraction_rows, make_patches

    with tempfile.TemporaryDirectory(prefix="bench_", dir=args.scratch) as folder:
        count, root = args.patches or PATCHES["extract"], args.root if args.dataset else Path(folder)
        if not args.dataset:
            make_patches(root, count)
        source = Source(root, args.dataset or SYNTHETIC_SET, args.vae, args.encoder, device)
        yield from extraction_rows(source, Path(folder) / "features", count, rounds)


def data(args: argparse.Namespace, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure reading for training, and look-ups in the index."""
    from benchmarks.lookups import lookup_rows
    from benchmarks.reading import reading_rows

    with tempfile.TemporaryDirectory(prefix="bench_", dir=args.scratch) as folder:
        yield from reading_rows(Path(folder), args.patches or PATCHES["data"], args.seconds, rounds)
        yield from lookup_rows(Path(folder), args.names)


def floor(args: argparse.Namespace, device: torch.device, rounds: int) -> Iterator[Row]:
    """Count the least time of a step and a sample."""
    import torch
    from benchmarks.roofline import floor_rows

    case = make_case(args, torch.device("cpu"), "floor")
    yield from floor_rows(case, args.steps or STEPS["floor"], 1e12 * args.peak, 1e9 * args.bandwidth)


def startup(args: argparse.Namespace, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure imports and --help."""
    from benchmarks.startup import startup_rows

    yield from startup_rows(rounds)


def busy(args: argparse.Namespace, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure a training step beside other programs."""
    import torch
    from benchmarks.case import Case
    from benchmarks.sharing import sharing_rows

    yield from sharing_rows(
        Case(args.size or "tiny", args.pixels, args.batch_size or 8, torch.device("cpu"), "fp32"), rounds
    )


# what to measure -> its rows, from the options, the device and the rounds
BENCHMARKS: dict[str, Callable[[argparse.Namespace, torch.device, int], Iterator[Row]]] = {
    "train": train,
    "sample": sample,
    "panorama": panorama,
    "extract": extract,
    "data": data,
    "startup": startup,
    "busy": busy,
    "floor": floor,
}

if __name__ == "__main__":
    run(main)
