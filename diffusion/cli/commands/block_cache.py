"""pixcell block-cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import positive_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.formats import LAST_WEIGHTS

CONDITIONS = 8


@checked
def block_cache(
    workdir: Annotated[options.Workdir, Here(note=options.NANO_NOTE)] = None,
    out: options.OutFile = Path("schedule.json"),
    computed: Annotated[
        int | None, Option("steps whose blocks are computed [half of them]", positive_int, group=options.SAMPLING)
    ] = None,
    order: Annotated[
        Literal[0, 1], Option("0: keep what the blocks added last; 1: go on along a line", int, group=options.SAMPLING)
    ] = 1,
    count: Annotated[options.Count, Here(str(CONDITIONS))] = CONDITIONS,
    images: options.Images = (),
    tokens: options.Tokens = (),
    dataset: options.Datasets = None,
    index: options.Index = None,
    features: options.Features = None,
    data_root: options.DataRoot = None,
    encoder: options.Encoder = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    solver: options.Solver = None,
    spacing: options.Spacing = None,
    seed: options.Seed = 0,
    checkpoint: options.Checkpoint = Path(LAST_WEIGHTS),
    weights: options.Weights = "ema",
    vae: options.Vae = None,
    root: options.RootOfRun = None,
    precision: options.Precision = "fp32",
    device: options.Device = "auto",
    gpu: options.Gpu = None,
    lora: options.Lora = (),
) -> None:
    """Find at which steps the blocks of a network are best computed, and at which predicted from earlier steps.

    A few images are sampled in full. Of all choices of --computed steps, the one is written whose predictions are nearest to
    what the blocks added in truth. It is for these --steps, solver, spacing and guidance; --block-cache of sample, large, vary,
    stain and sweep takes it.

    Examples:
      pixcell block-cache --workdir output/256 --computed 8 --out schedule.json
      pixcell sample --workdir output/256 --block-cache schedule.json --count 1000
    """
    from diffusion.generation.cache_schedules import find_schedule, record_products
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.sources import ConditionSource, choose_conditions, choose_source
    from diffusion.utils.errors import InputError
    from diffusion.utils.files import atomic_write_bytes

    if out.suffix != ".json":
        raise InputError(f"--out {out}: expected a file that ends in .json")
    session = open_session(
        workdir,
        checkpoint,
        Solver(steps, guidance, solver, guidance_interval, precision, spacing=spacing),
        seed=seed,
        averaged=weights == "ema",
        root=root,
        vae=vae,
        encoder=encoder,
        device=device,
        gpu_id=gpu,
        loras=lora,
    )
    source = ConditionSource(images, tokens, data_root, index, features, dataset)
    source = source if root else choose_source(session, source)
    conditions, _ = choose_conditions(session, source, pixels=False)
    steps = session.solver.taken_steps
    wanted = computed or -(-steps // 2)
    schedule, error = find_schedule(record_products(session, conditions, count or CONDITIONS), wanted, order)
    atomic_write_bytes(out, (json.dumps(schedule.to_dict()) + "\n").encode())
    chosen = [number for number, each in enumerate(schedule.computed) if each]
    print(
        f"computed steps: {', '.join(map(str, chosen))} of {steps}; mean relative error of the others' blocks {error:.2g}"
    )
    print(f"written: {out}")
