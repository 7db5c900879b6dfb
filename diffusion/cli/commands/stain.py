"""pixcell stain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import positive_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.formats import LAST_WEIGHTS, STAIN_STRENGTH

STAINING = "staining"


@checked
def stain(
    images: Annotated[
        Sequence[Path], Option("H&E to stain: images, slides, and folders of them", positional=True, metavar="PATH")
    ],
    workdir: Annotated[options.Workdir, Here(note=options.NANO_NOTE)] = None,
    flow: Annotated[options.Flow, Here("none: embeddings as they are", STAINING)] = None,
    lora: options.Lora = (),
    structure: Annotated[
        Literal["none", "sdedit", "control"],
        Option(
            "what keeps the structure: none, embeddings alone, as released; sdedit, the picture's latents with noise on them; control, a "
            "ControlNet that reads them",
            group=STAINING,
        ),
    ] = "none",
    strength: Annotated[options.Strength, Here(str(STAIN_STRENGTH), STAINING, note="; of --structure sdedit")] = None,
    controlnet: options.ControlNet = None,
    out: options.OutFolder = Path("stained"),
    part: options.Part = None,
    mpp: Annotated[options.Mpp, Here(note="; of the result, and of the network")] = 0.5,
    image_mpp: options.ImageMpp = None,
    flow_steps: Annotated[int, Option("steps of the flow", positive_int, group=STAINING)] = 100,
    flow_method: Annotated[
        Literal["euler", "heun"], Option("how the flow is followed; heun evaluates it twice a step", group=STAINING)
    ] = "euler",
    region: Annotated[
        int,
        Option(
            "pixels a side that are sampled together, a multiple of 256; larger ones take more memory",
            positive_int,
            group=STAINING,
        ),
    ] = 2048,
    overlap: Annotated[
        int,
        Option(
            "pixels that neighbouring regions share and are blended in, a multiple of 256", positive_int, group=STAINING
        ),
    ] = 256,
    window_stride: options.WindowStride = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    solver: options.Solver = None,
    seed: options.Seed = 0,
    checkpoint: options.Checkpoint = Path(LAST_WEIGHTS),
    weights: options.Weights = "ema",
    control_scale: options.ControlScale = 1.0,
    control_interval: options.ControlInterval = None,
    control_in_null: options.ControlInNull = False,
    encoder: options.Encoder = None,
    vae: options.Vae = None,
    format: options.LargeFormat = "auto",
    root: options.RootOfRun = None,
    batch_size: Annotated[options.BatchSize, Here(options.BUSY)] = None,
    precision: options.Precision = "fp32",
    compile: options.Compile = False,
    device: options.Device = "auto",
    gpu: options.Gpu = None,
    spacing: options.Spacing = None,
    autoguidance: options.Autoguidance = None,
    block_cache: options.BlockCache = "none",
) -> int:
    """Stain H&E virtually: images, folders, a part of a slide or a whole slide.

    The windows of a picture are embedded, a flow translates the embeddings to those of the other stain, and the network samples
    for these, region by region. OUT gets a picture of each one's name, below a folder that is named in the same folders, and of a large
    one a pyramidal TIFF. A region follows from the seed, the name and its place alone, so the same command goes on after a stop with
    the next region, to the same picture. What is glass stays as it is.

    Examples:
      pixcell stain tiles/ --workdir pretrained_models/pixcell-1024 --flow mist_er_mlp.pth --lora mist_er_lora.pth --guidance 1.2
      pixcell stain slide.svs --workdir output/1024 --flow output/flow --lora output/lora --structure sdedit --strength 0.5
      pixcell stain slide.svs --workdir output/1024 --flow output/flow --lora output/lora --part 20000 12000 4096 4096
      accelerate launch -m pixcell stain slide.svs --workdir output/control --flow output/flow --structure control
    """
    from diffusion.data.slides.discovery import find_pictures
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.stained_pictures import StainJob, stain_pictures
    from diffusion.generation.staining import Stainer, StainSettings
    from diffusion.model.flow import load_flow
    from diffusion.utils.errors import InputError
    from diffusion.utils.hardware import windows_per_pass

    if strength is not None and structure != "sdedit":
        raise InputError(f"--strength is of --structure sdedit, not {structure}; leave it out")
    if strength is None:
        strength = STAIN_STRENGTH if structure == "sdedit" else 1.0  # all steps are taken
    found, refused = find_pictures(images, out)
    if len(found) > 1 and part is not None:
        raise InputError(f"--part is of one slide, and {len(found)} are named: name one")
    jobs = [StainJob(path, name, mpp, image_mpp, part, format) for name, path in found.items()]
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
            strength,
            spacing,
            block_cache,
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
    batch_size = batch_size or windows_per_pass(session.device, session.run.config.input_size)
    settings = StainSettings(structure, flow_steps, flow_method, region, overlap, window_stride, batch_size)
    network = None if flow is None else load_flow(flow).to(session.device)
    refused |= stain_pictures(Stainer(session, network, settings), jobs, out)
    for path, reason in refused.items():
        session.state.print(f"failed: {path}: {reason}")
    return 1 if refused else 0
