"""pixcell sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.signature import Here, checked
from diffusion.cli.unused import refuse_unused_conditions
from diffusion.formats import LAST_WEIGHTS

SIZES = (256, 512, 1024)
INDEX_COUNT = 16


@checked
def sample(
    workdir: Annotated[options.Workdir, Here(note=options.NANO_NOTE)] = None,
    out: options.OutFolder = Path("samples"),
    count: Annotated[
        options.Count, Here(f"one for each file that conditions; {INDEX_COUNT} of an index, or of a prior")
    ] = None,
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
    seed: options.Seed = 0,
    checkpoint: options.Checkpoint = Path(LAST_WEIGHTS),
    weights: options.Weights = "ema",
    vae: options.Vae = None,
    format: options.ImageFormat = "png",
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
    class_: options.Classes = (),
    spacing: options.Spacing = None,
    autoguidance: options.Autoguidance = None,
    block_cache: options.BlockCache = "none",
    *,
    sizes: Sequence[int] = SIZES,
    index_count: int = INDEX_COUNT,
    published: bool = False,
) -> None:
    """Sample images of a run, or of released weights: tissue for indexed patches, for images or for embeddings.

    OUT/syn gets the samples and OUT/real, under the same names, the tissue that conditions. An image depends on the seed and its
    number only, and the same command goes on after a stop. Without --count there is one for each file that conditions, and
    16 of an index. A ControlNet takes masks or images from --control, each beside the embeddings of whatever conditions: the look
    of one patch, the layout of another; OUT/control gets the masks. A prior draws embeddings, so that no patch is needed.

    Examples:
      pixcell sample --workdir output/256 --images tissue.png --count 8
      pixcell sample --workdir output/256 --index patch_names_test.hdf5 --count 5000 --out samples_256
      accelerate launch -m pixcell sample --workdir output/1024 --count 50000 --guidance 1.2
      pixcell sample --workdir output/controlnet --control masks/ --images tissue.png
      pixcell sample --workdir output/1024 --prior output/prior --class tumour --count 8
    """
    indexed = dict(data_root=data_root, index=index, features=features, dataset=dataset)
    refuse_unused_conditions(sample, images, tokens, {"encoder": encoder}, indexed, published, prior)

    from diffusion.generation.output_folder import OutputFolder
    from diffusion.generation.sample_patches import sample_patches
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.generation.sources import ConditionSource, choose_source

    source = ConditionSource(images, tokens, data_root, index, features, dataset, image_mpp, control, prior, class_)
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
    source = source if root else choose_source(session, source)  # a root is that of an index
    sample_patches(session, source, OutputFolder(out, format), sizes, count, index_count, batch_size)
