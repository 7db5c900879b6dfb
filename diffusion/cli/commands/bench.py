"""pixcell bench."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import positive_float, positive_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.cli.unused import refuse_unused

Part = Literal["all", "train", "sample", "panorama", "extract", "data", "startup", "busy", "floor"]
_CASE = {"network", "size", "batch_size"}
USES: dict[str, set[str]] = {  # part -> the options that it looks at, beside --out and --device
    "train": {*_CASE, "precision", "compile", "rounds"},
    "sample": {*_CASE, "precision", "compile", "rounds", "steps", "guidance_interval", "plain"},
    "panorama": {*_CASE, "precision", "rounds", "steps"},
    "extract": {"root", "dataset", "vae", "encoder", "count", "scratch", "rounds"},
    "data": {"count", "index_count", "seconds", "scratch", "rounds"},
    "startup": {"rounds"},
    "busy": {*_CASE, "rounds"},
    "floor": {*_CASE, "precision", "steps", "peak", "bandwidth"},
}


@checked
def bench(
    part: Annotated[
        Part,
        Option(
            "what to measure; floor only counts: the least time of a step and a sample on a processor of --peak, --bandwidth",
            positional=True,
        ),
    ] = "all",
    network: Annotated[Literal["tiny", "B", "XL"] | None, Option("size of the network [B; of panorama tiny]")] = None,
    size: Annotated[options.Size, Here(choices=(256, 512, 1024))] = 256,
    steps: Annotated[options.Steps | None, Here("20, panorama 1", "")] = None,
    guidance_interval: Annotated[
        options.GuidanceInterval, Here("0.3 to 5, which a sweep chose for the demo's network", "")
    ] = (0.3, 5.0),
    plain: Annotated[bool, Option("sample: the loop of one image and one pass at a time, too")] = False,
    rounds: Annotated[int | None, Option("whose median is shown [train 8, panorama 2, others 3]", positive_int)] = None,
    out: Annotated[options.OutFile | None, Here("the figures are printed alone")] = None,
    dataset: Annotated[options.Dataset | None, Here("extract: patches made here", note=options.A_KEY)] = None,
    vae: Annotated[options.Vae, Here("tiny", options.DATA)] = "tiny",
    encoder: Annotated[options.Encoder, Here("extract: MobileNetV2 with random weights", options.DATA)] = None,
    count: Annotated[
        options.Count, Here("patches to extract 24, to read from 1024; each takes 4 MiB of disk", options.DATA)
    ] = None,
    index_count: Annotated[
        int, Option("names of the index; 120 bytes of disk each", positive_int, group=options.DATA)
    ] = 3_000_000,
    seconds: Annotated[float, Option("of each reading with a warm cache", positive_float, group=options.DATA)] = 3.0,
    scratch: Annotated[
        Path | None, Option("folder for temporary files [the system's]", metavar="FOLDER", group=options.MACHINE)
    ] = None,
    peak: Annotated[
        float,
        Option("floor: TFLOP/s of products [989, an H100's in bf16, dense]", positive_float, group=options.MACHINE),
    ] = 989.0,
    bandwidth: Annotated[
        float, Option("floor: GB/s of memory [3350, an H100's]", positive_float, group=options.MACHINE)
    ] = 3350.0,
    root: options.Root = None,
    batch_size: Annotated[options.BatchSize, Here("8, sample 4, panorama as many as pixcell large takes")] = None,
    precision: Annotated[
        options.Precision, Here("auto: bf16 on a GPU that has it, else fp32", choices=("auto", "fp32", "bf16"))
    ] = "auto",
    compile: options.Compile = False,
    device: options.Device = "auto",
    *,
    published: bool = False,
) -> None:
    """Measure this machine beside a peer: training, sampling, large pictures, extraction, reading, start.

    Everything is timed in turns with a peer, since machines slow down and speed up: what counts is the ratio. Peers are
    diffusers' PixArt with its DPM-Solver, AdamW and EMAModel, loops that do one thing at a time, and the ways of the published
    code. Networks have random weights; no data is needed. docs/performance-notebook.md has the figures and what they mean. The
    benchmarks are in a clone of the repository, not in what is installed from a wheel.

    Examples:
      pixcell bench all --out bench.json
      pixcell bench train --network XL --size 512 --batch-size 16 --compile
      pixcell bench extract --root data/demo --dataset demo --encoder mobilenetv2
    """
    settings = dict(
        network=network,
        size=size,
        batch_size=batch_size,
        steps=steps,
        guidance_interval=guidance_interval,
        precision=precision,
        compile=compile,
        plain=plain,
        root=root,
        dataset=dataset,
        vae=vae,
        encoder=encoder,
        count=count,
        index_count=index_count,
        seconds=seconds,
        scratch=scratch,
        peak=peak,
        bandwidth=bandwidth,
    )
    if part != "all":
        unused = {name: value for name, value in {**settings, "rounds": rounds}.items() if name not in USES[part]}
        refuse_unused(bench, unused, f"on {part}", published)
    parts = load_parts()

    import dataclasses
    import json

    from diffusion.utils.files import atomic_write_bytes
    from diffusion.utils.hardware import prepare_device
    from diffusion.utils.text import default_root

    place = prepare_device(device)
    machine = parts.describe_machine(place)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    chosen = parts.Options(**{**settings, "root": root or default_root(), "encoder": encoder or ""})
    table = import_module("benchmarks.table")
    rows = []
    for name in [name for name in parts.BENCHMARKS if name != "floor"] if part == "all" else [part]:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        for row in parts.BENCHMARKS[name](chosen, place, rounds or parts.ROUNDS.get(name, 1)):
            rows.append(row)
            print(table.format_row(row), file=sys.stderr, flush=True)
            if out is not None:  # complete at any time: what was measured outlives what is stopped
                report = {"machine": machine, "rows": [dataclasses.asdict(each) for each in rows]}
                atomic_write_bytes(out, (json.dumps(report, indent=1) + "\n").encode())
    print(table.format_rows(rows))


def load_parts() -> ModuleType:
    """Return the module of the clone that measures. Raises InputError where there is no clone."""
    from diffusion.utils.assets import PACKAGES
    from diffusion.utils.errors import InputError

    folder = PACKAGES / "tools"
    if not (folder / "benchmarks").is_dir():
        raise InputError(
            "the benchmarks are not in the installed package; clone the repository, and run pixcell bench in the clone"
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return import_module("benchmarks.parts")
