"""pixcell push."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from diffusion.cli import options
from diffusion.cli.parser import output_name
from diffusion.cli.signature import Here, Option, checked
from diffusion.formats import CONFIG_FILE, LAST_WEIGHTS


@checked
def push(
    repository: Annotated[
        str | None, Option("repository of the hub to upload to, OWNER/NAME; it is made if need be", positional=True)
    ] = None,
    workdir: options.Workdir = None,
    checkpoint: Annotated[options.Checkpoint, Here(group="")] = Path(LAST_WEIGHTS),
    weights: Annotated[options.Weights, Here(group="")] = "ema",
    vae: Annotated[options.Vae, Here(group="")] = None,
    with_codec: Annotated[
        bool,
        Option("write the codec, too, where its terms ask for more than to name its authors; see that they allow it"),
    ] = False,
    without_codec: Annotated[
        bool, Option("leave the codec out in any case, as one that everyone has who opens the folder")
    ] = False,
    precision: Annotated[options.Precision, Here(group="", note="; any can be written")] = "fp32",
    conditions: Annotated[
        Sequence[Path],
        Option(
            ".npy files of embeddings that go along, one tissue each, which pixcell sample takes where no image is given",
            metavar="FILE",
        ),
    ] = (),
    report: Annotated[
        Path | None, Option("folder of a report by pixcell evaluate, whose scores the card shows", metavar="FOLDER")
    ] = None,
    data: Annotated[
        str | None, Option("what the network was trained on, in words, for the card", metavar="TEXT")
    ] = None,
    license: Annotated[
        str | None,
        Option(
            "licence of the weights, such as cc-by-nc-nd-4.0; none that is freer than that of base weights, codec or encoder "
            "[other: the terms of these]",
            metavar="NAME",
        ),
    ] = None,
    public: Annotated[bool, Option("make the repository public, for anyone to see")] = False,
    out: Annotated[Path | None, Option(f"{options.OUT} [a temporary folder]", output_name, metavar="FOLDER")] = None,
    dry_run: Annotated[options.DryRun, Here("OUT is written, nothing uploaded")] = False,
    root: options.RootOfRun = None,
) -> None:
    """Publish the weights of a run on huggingface.co, with a model card that names the terms of all its parts.

    The folder has the layout of diffusers, which PixCellPipeline.from_pretrained opens, the settings of the run as data, and README.md,
    the card. A codec that may be passed on freely is part of it, others are left out and named. The repository is private unless
    --public is given. The token is that of HF_TOKEN or of a stored login; it is written nowhere.

    Examples:
      pixcell push --workdir output/256 --out hub_256 --dry-run
      pixcell push me/pixcell-mine --workdir output/256 --report report --data "412 slides of breast, 20x, one hospital"
    """
    import contextlib
    import dataclasses
    import tempfile

    import torch

    from diffusion.components import check_tokens, resolve_latent_scale
    from diffusion.generation.conditions import load_token_conditions
    from diffusion.publishing.hub_folder import check_repository, upload_folder, write_hub_folder
    from diffusion.publishing.licences import check_licence
    from diffusion.publishing.model_card import CardContent, read_scores
    from diffusion.publishing.parts import find_parts
    from diffusion.utils.errors import InputError
    from diffusion.utils.hardware import torch_dtype
    from diffusion.workdir import default_work_dir, open_run

    if dry_run and out is None:
        raise InputError("--dry-run writes a folder and uploads nothing: name the folder with --out")
    if not dry_run and repository is None:
        raise InputError(
            "name the repository to upload to, OWNER/NAME, or write a folder alone with --dry-run --out FOLDER"
        )
    if repository is not None:
        check_repository(repository)
    if with_codec and without_codec:
        raise InputError("--with-codec and --without-codec contradict each other; give one")
    scores = None if report is None else read_scores(report)
    run = open_run(workdir or default_work_dir(), checkpoint, torch.device("cpu"), ema=weights == "ema")
    if run.controlnet is not None or run.config.lora.rank:
        kind = "a ControlNet" if run.controlnet is not None else "an adapter"
        raise InputError(
            f"{run.folder} is a run of {kind}, and push writes whole networks; pixcell convert writes what is added to one"
        )
    config, place = run.config, root or run.config.data_root
    if vae is not None:  # its own scale goes with it
        config = dataclasses.replace(config, vae_pretrained=vae, scale_factor=None, shift_factor=None)
    resolve_latent_scale(config, place)  # which the folder takes from the codec
    parts = find_parts(run, config, place)
    if license is not None:
        check_licence(license, parts)
    codec = next(part for part in parts if part.role == "codec")
    content = CardContent(
        name=repository or run.folder.resolve().name,
        config=config,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        parts=parts,
        has_codec=not without_codec and (with_codec or codec.licence.is_free),
        has_settings=(run.folder / CONFIG_FILE).is_file(),
        licence=license,
        report=scores,
        data=data,
        student=run.student,
    )
    names = [path.name for path in conditions]
    if len(set(names)) < len(names) or any(path.suffix != ".npy" for path in conditions):
        raise InputError(f"--conditions {', '.join(names)}: expected .npy files, each with a name of its own")
    for condition in load_token_conditions(conditions, config.model_max_length):
        check_tokens(condition.condition.tokens[0], config.model_max_length, config.caption_channels, condition.name)
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixcell-"))) / "hub"
        write_hub_folder(folder, run, place, content, torch_dtype(precision), conditions)
        for part in parts:
            print(f"{part.role}: {part.name} ({part.licence.name})")
        if out is not None:
            print(f"written: {out}")
        if not dry_run and repository is not None:
            print(f"uploaded: {upload_folder(folder, repository, public)}, {'public' if public else 'private'}")
