"""pixcell large."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.parser import positive_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.formats import LAST_WEIGHTS


@checked
def large(
    workdir: Annotated[options.Workdir, Here(note=options.NANO_NOTE)] = None,
    out: options.OutFolder = Path("samples_large"),
    count: options.Count = 1,
    height: Annotated[int, Option("of the picture in pixels, a multiple of 256", positive_int)] = 4096,
    width: Annotated[int, Option("of the picture in pixels, a multiple of 256", positive_int)] = 4096,
    reference: Annotated[
        Path | None,
        Option("an image that conditions, embedded now, from its top left corner on", group=options.CONDITIONS),
    ] = None,
    slide: Annotated[
        Path | None, Option("a slide whose region conditions, embedded now at --mpp", group=options.CONDITIONS)
    ] = None,
    x: Annotated[
        int, Option("left edge of that region, in pixels of the slide's finest level", group=options.CONDITIONS)
    ] = 0,
    y: Annotated[int, Option("its top edge", group=options.CONDITIONS)] = 0,
    tokens: options.TokenGrid = None,
    encoder: options.Encoder = None,
    mpp: Annotated[options.Mpp, Here(note="; of the picture, as its file says, and of the region of --slide")] = 0.5,
    image_mpp: Annotated[options.ImageMpp, Here(note="; of --slide alone")] = None,
    window_stride: options.WindowStride = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    solver: options.Solver = None,
    seed: options.Seed = 0,
    checkpoint: options.Checkpoint = Path(LAST_WEIGHTS),
    weights: options.Weights = "ema",
    vae: options.Vae = None,
    decode_tile: Annotated[
        int, Option("cells a side that the codec decodes at once", positive_int, group=options.MACHINE)
    ] = 64,
    format: options.LargeFormat = "auto",
    root: options.RootOfRun = None,
    batch_size: Annotated[options.BatchSize, Here(options.BUSY)] = None,
    precision: options.Precision = "fp32",
    compile: options.Compile = False,
    device: options.Device = "auto",
    gpu: options.Gpu = None,
    lora: options.Lora = (),
    controlnet: options.ControlNet = None,
    control: Annotated[options.Control, Here("none; one, of the picture's size")] = (),
    control_scale: options.ControlScale = 1.0,
    control_interval: options.ControlInterval = None,
    control_in_null: options.ControlInNull = False,
    prior: Annotated[options.Prior, Here(note=", of grids: --size 512 or 1024")] = None,
    class_: options.Classes = (),
    spacing: options.Spacing = None,
    autoguidance: options.Autoguidance = None,
    block_cache: options.BlockCache = "none",
    *,
    published: bool = False,
) -> None:
    """Sample pictures of any size, in windows that are blended.

    A network of 512 or 1024 pixels predicts overlapping windows, and their predictions are blended at every step. The
    picture is tissue for a region of a slide, for an image, for a grid of embeddings, for one that a prior draws, or else for
    patches of the run's index and their neighbours. OUT/syn gets the pictures and OUT/real the region that conditions; the same
    command goes on after a stop.

    Examples:
      pixcell large --workdir output/1024 --slide slide.svs --x 20000 --y 12000
      pixcell large --workdir output/1024 --reference tissue.png --height 2048 --width 3072 --out large
      pixcell large --workdir output/1024 --count 100 --window-stride 64
      pixcell large --workdir output/1024 --prior output/prior_1024 --class tumour
    """
    if slide is None:
        refuse_unused(large, {"image_mpp": image_mpp}, "without --slide, whose pixels it is of", published)
    if slide is None and reference is None:
        refuse_unused(large, {"encoder": encoder}, "without --slide or --reference, which it embeds", published)

    from diffusion.generation.large_pictures import LargeSource, PictureSize, sample_large_pictures
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver

    source = LargeSource(reference, slide, x, y, tokens, image_mpp, control, prior, class_)
    size = PictureSize(height, width, mpp)
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
    sample_large_pictures(session, source, out, size, count or 1, window_stride, batch_size, decode_tile, format)
