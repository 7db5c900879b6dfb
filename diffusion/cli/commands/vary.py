"""pixcell vary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.parser import natural_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.formats import LAST_WEIGHTS
from diffusion.utils.errors import InputError


@checked
def vary(
    images: Annotated[
        Sequence[Path],
        Option("image files; of those larger than the network's size, the middle", positional=True),
    ] = (),
    workdir: Annotated[options.Workdir, Here(note=options.NANO_NOTE)] = None,
    out: options.OutFile = Path("variations.png"),
    variations: Annotated[int, Option("images sampled for each", natural_int)] = 4,
    between: Annotated[
        int | None,
        Option("images on the way from the first to the second of two; 0: none [5 of two]", natural_int),
    ] = None,
    encoder: options.Encoder = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    solver: options.Solver = None,
    seed: options.Seed = 0,
    checkpoint: options.Checkpoint = Path(LAST_WEIGHTS),
    weights: options.Weights = "ema",
    vae: options.Vae = None,
    root: options.RootOfRun = None,
    batch_size: Annotated[options.BatchSize, Here(options.BUSY)] = None,
    precision: options.Precision = "fp32",
    compile: options.Compile = False,
    device: options.Device = "auto",
    gpu: options.Gpu = None,
    image_mpp: options.ConditionMpp = None,
    lora: options.Lora = (),
    controlnet: options.ControlNet = None,
    control: options.Control = (),
    control_scale: options.ControlScale = 1.0,
    control_interval: options.ControlInterval = None,
    control_in_null: options.ControlInNull = False,
    prior: options.Prior = None,
    class_: Annotated[options.Classes, Here("one row of any class", note="; a row for each")] = (),
    spacing: options.Spacing = None,
    autoguidance: options.Autoguidance = None,
    block_cache: options.BlockCache = "none",
) -> None:
    """Sample variations of images, and images between two, as one picture.

    Each row of the picture begins with an image, and goes on with samples for its embedding. Of two images, the last row is the
    way from one embedding to the other. Images of a column begin with the same noise. Of several masks that --control names, the
    first is of the first image, and so on. A prior draws embeddings instead of images, one of each class that is named.

    Examples:
      pixcell vary tissue.png --workdir output/256 --variations 6
      pixcell vary tumour.png stroma.png --workdir output/1024 --between 7 --out variations.png
      pixcell vary --workdir output/256 --prior output/prior --class tumour stroma --between 7
    """
    from diffusion.generation.image_files import image_kind, save_image
    from diffusion.generation.priors import check_classes
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.variations import check_variations, sample_variations

    check_classes(prior, class_)
    if prior is not None and images:
        raise InputError(f"{images[0]} and --prior: one of them conditions; give one")
    if prior is None and not images:
        raise InputError("nothing to vary: name image files, or a prior with --prior")
    if prior is not None:
        refuse_unused(vary, {"encoder": encoder, "image_mpp": image_mpp}, "beside --prior, which draws embeddings")
    check_variations(len(images) or len(class_) or 1, variations, between)
    image_kind(out)  # better now than after all is sampled
    session = open_session(
        workdir,
        checkpoint,
        Solver(
            steps,
            guidance,
            solver,
            guidance_interval,
            precision,
            control_scale,
            control_interval,
            control_in_null,
            spacing=spacing,
            block_cache=block_cache,
        ),
        seed=seed,
        averaged=weights == "ema",
        compiled=compile,
        root=root,
        vae=vae,
        encoder=encoder,
        device=device,
        gpu_id=gpu,
        loras=lora,
        controlnet=controlnet,
        autoguidance=autoguidance,
    )
    made = sample_variations(session, images, variations, between, batch_size, image_mpp, control, prior, class_)
    save_image(out, made.picture, {**session.image_metadata(0), "condition": made.names})
    print(f"{made.samples} images, written: {out}")
