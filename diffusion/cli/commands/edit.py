"""pixcell edit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import natural_int, positive_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.formats import EDIT_STRENGTH, ENLARGE_STRENGTH, LAST_WEIGHTS

EDITING = "what changes"
EMBEDDINGS = "embeddings"


@checked
def edit(
    images: Annotated[
        Sequence[Path],
        Option("pictures to edit: images, slides, folders of them, and .txt lists", positional=True, metavar="PATH"),
    ],
    workdir: Annotated[options.Workdir, Here(note=options.NANO_NOTE)] = None,
    out: options.OutFolder = Path("edited"),
    strength: Annotated[
        options.Strength,
        Here(
            f"1 where a part changes, else {EDIT_STRENGTH}, and {ENLARGE_STRENGTH} to enlarge",
            EDITING,
            note=", and 0 keeps all",
        ),
    ] = None,
    mask: Annotated[
        Sequence[Path],
        Option(
            "masks, of the pictures' sizes, that are not 0 where the picture changes: a file for each picture, or a folder of files of "
            "the pictures' names [all of each picture changes]",
            group=EDITING,
        ),
    ] = (),
    outlines: Annotated[
        Path | None,
        Option(
            "outlines of what changes, GeoJSON as QuPath writes it, in pixels of the finest level of the one picture [none]",
            metavar="FILE",
            group=EDITING,
        ),
    ] = None,
    outline_classes: Annotated[
        Sequence[str], Option("classes of the outlines that change [all]", metavar="NAME", group=EDITING)
    ] = (),
    box: Annotated[
        tuple[int, int, int, int] | None,
        Option(
            "a rectangle that changes, in pixels of the picture as it is read [none]",
            natural_int,
            metavar=("X", "Y", "WIDTH", "HEIGHT"),
            group=EDITING,
        ),
    ] = None,
    extend: Annotated[
        tuple[int, int, int, int] | None,
        Option(
            "pixels that are added to each side, and sampled [none]",
            natural_int,
            metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"),
            group=EDITING,
        ),
    ] = None,
    enlarge: Annotated[
        int,
        Option(
            "super-resolution: times as many pixels a side, whose means over squares are the picture",
            positive_int,
            choices=(1, 2, 4),
            group=EDITING,
        ),
    ] = 1,
    look: Annotated[
        Sequence[str],
        Option(
            "an image, or an embedding as .npy, that conditions what changes instead of the picture itself, or AMOUNT of the way to it; "
            "with a class, the outlines of that class [the picture itself]",
            metavar="[CLASS=]FILE[:AMOUNT]",
            group=EMBEDDINGS,
        ),
    ] = (),
    add: Annotated[
        Sequence[str],
        Option(
            "images, or embeddings as .npy, that are added to the embeddings of what changes, AMOUNT times each, such as a.png b.png:-1 "
            "[nothing]",
            metavar="FILE[:AMOUNT]",
            group=EMBEDDINGS,
        ),
    ] = (),
    match_colours: Annotated[
        Path | None,
        Option("an image whose colours the varied picture is given; alone, the picture itself is given them [none]"),
    ] = None,
    colour_method: Annotated[
        Literal["reinhard", "macenko"],
        Option("how: means and deviations of Lab, or colours and amounts of the two stains"),
    ] = "reinhard",
    part: options.Part = None,
    mpp: Annotated[options.Mpp, Here(note="; that slides are read at")] = 0.5,
    image_mpp: options.ImageMpp = None,
    count: Annotated[options.Count, Here(note="; of each picture, with other noise")] = 1,
    window_stride: options.WindowStride = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    guidance_interval: options.GuidanceInterval = None,
    solver: options.Solver = None,
    spacing: options.Spacing = None,
    seed: options.Seed = 0,
    checkpoint: options.Checkpoint = Path(LAST_WEIGHTS),
    weights: options.Weights = "ema",
    lora: options.Lora = (),
    controlnet: options.ControlNet = None,
    control: Annotated[options.Control, Here("none; one, of the result's size")] = (),
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
    autoguidance: options.Autoguidance = None,
    block_cache: options.BlockCache = "none",
) -> int:
    """Edit pictures: vary, repair, extend, enlarge them, and give them another look or other colours.

    Without more, all of a picture is varied, by --strength. A mask, outlines, a box or new margins say which part is sampled anew, and the
    rest stays, pixel for pixel. What changes is conditioned by the embeddings of the picture around it, or by those of other images. OUT
    gets a picture of each one's name; the same command goes on after a stop.

    Examples:
      pixcell edit tissue.png --workdir nano --strength 0.4 --count 4
      pixcell edit tissue.png --workdir output/256 --mask pen.png --out repaired
      pixcell edit slide.svs --part 20000 12000 2048 2048 --outlines regions.geojson --look tumour=tumour.png stroma=stroma.png
      pixcell edit tissue.png --extend 0 0 256 0 --out wider
      pixcell edit coarse.png --enlarge 4 --out fine
      pixcell edit tissue.png --match-colours reference.png --out matched
    """
    from diffusion.data.slides.discovery import find_pictures
    from diffusion.generation.colours import ColourMatch
    from diffusion.generation.controls import list_controls, read_picture
    from diffusion.generation.edit_sources import EditSource, load_embedding, match_masks, parse_look
    from diffusion.generation.edited_pictures import EditJob, Looks, edit_pictures, recolour_pictures
    from diffusion.generation.editing import Editor, EditSettings, add_embeddings, check_matched, choose_strength
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.utils.errors import InputError
    from diffusion.utils.hardware import windows_per_pass

    found, refused = find_pictures(images, out)
    of_one = {"--part": part, "--outlines": outlines, "--control": control or None}
    if len(found) > 1 and (named := [name for name, value in of_one.items() if value is not None]):
        raise InputError(f"{named[0]} is of one picture, and {len(found)} are named: name one")
    controls = list_controls(control)
    if len(controls) > 1:
        raise InputError(f"--control: {len(controls)} files for one picture: name one, of its size")
    masks = match_masks(found, mask)
    sources = {
        name: EditSource(
            path,
            part,
            mpp,
            image_mpp,
            masks.get(name),
            outlines,
            outline_classes,
            box,
            extend,
            enlarge,
            controls[0] if controls else None,
        )
        for name, path in found.items()
    }
    is_given = strength is not None
    changes_part = any(source.changes_part for source in sources.values())
    strength = choose_strength(strength, changes_part, enlarge, extend is not None)
    if match_colours is not None:
        check_matched(changes_part, enlarge != 1)
    count = count or 1
    jobs = [
        EditJob(source, name if count == 1 else f"{name}_{copy}", copy * len(sources) + number, format)
        for copy in range(count)
        for number, (name, source) in enumerate(sources.items())
    ]
    reference = (
        None if match_colours is None else ColourMatch(read_picture(match_colours), colour_method, str(match_colours))
    )
    changes = (mask, outlines, box, extend, enlarge != 1, look, add, control, is_given)
    if reference is None:
        refuse_unused(edit, {"colour_method": colour_method}, "without --match-colours")
    if reference is not None and not any(changes):
        sampling = dict(count=count, steps=steps, guidance=guidance, guidance_interval=guidance_interval, seed=seed)
        sampling |= dict(solver=solver, spacing=spacing, window_stride=window_stride, block_cache=block_cache)
        network = dict(workdir=workdir, checkpoint=checkpoint, weights=weights, root=root, vae=vae, encoder=encoder)
        network |= dict(lora=lora, controlnet=controlnet, autoguidance=autoguidance, control_scale=control_scale)
        network |= dict(control_interval=control_interval, control_in_null=control_in_null)
        reason = "beside --match-colours alone, which samples nothing; give --strength to vary the picture, too"
        refuse_unused(edit, {**sampling, **network}, reason)
        refused |= recolour_pictures(jobs, out, reference)
    else:
        looks, added = [
            [parse_look(text, f"--{name}") for text in given] for name, given in (("look", look), ("add", add))
        ]
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
        batch_size = batch_size or windows_per_pass(session.device, session.run.config.input_size)
        embeddings = {each.path: load_embedding(each.path, session) for each in (*looks, *added)}
        total = add_embeddings([(embeddings[each.path], each.amount) for each in added])
        editor = Editor(session, EditSettings(strength, window_stride, batch_size), reference, total)
        refused |= edit_pictures(editor, jobs, out, Looks(looks, embeddings))
    for path, reason in refused.items():
        print(f"failed: {path}: {reason}")
    return 1 if refused else 0
