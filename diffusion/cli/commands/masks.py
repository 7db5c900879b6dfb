"""pixcell masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import path_text, plain_name, positive_float
from diffusion.cli.signature import Here, Option, checked
from diffusion.formats import DEFAULT_INDEX, WINDOW

if TYPE_CHECKING:
    from diffusion.extraction import Outcome


@checked
def masks(
    dataset: Annotated[options.Dataset, Here(note=options.A_KEY)],
    size: options.Size = 256,
    objects: Annotated[
        Path | None,
        Option(
            "a label image or annotations of a slide, or a folder of them named after slides: images, .npy, .npz, GeoJSON, JSON of "
            "CellViT, HoVer-Net or StarDist [nuclei are found in the patches themselves, by haematoxylin]",
            metavar="PATH",
        ),
    ] = None,
    mask_mpp: Annotated[
        float | None,
        Option("microns per pixel of --objects, whose files do not say it [needed with --objects]", positive_float),
    ] = None,
    kind: Annotated[
        Literal["binary", "labels", "types"],
        Option("what is written: 255 within a nucleus; numbers of nuclei; or numbers of classes, from 1 on"),
    ] = "binary",
    classes: Annotated[
        Sequence[str],
        Option("classes of annotations to take, in the order of their numbers [all, as one]", metavar="NAME"),
    ] = (),
    suffix: Annotated[str, Option("ending of the files, which begins with mask", plain_name)] = "mask",
    index: options.DataIndex = DEFAULT_INDEX,
    features: Annotated[
        str | None, Option(f"{options.FEATURES} [beside the images]", path_text, metavar="FOLDER")
    ] = None,
    on_error: options.OnError = "skip",
    vae: Annotated[
        str | None,
        Option(
            f"{options.CODEC} [none; with one, latents of the masks are written, too, for a ControlNet of latents, as released]",
            completes="folder",
        ),
    ] = None,
    workers: options.WorkersPerCore = None,
    root: options.Root = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
) -> int:
    """Make masks of nuclei for every indexed patch, which a ControlNet is trained with.

    Each goes to <column>_<row>_mask.png beside its patch; one that is there is left alone, and a run that was stopped goes on.
    Without --objects, nuclei are found by colour deconvolution, threshold and watershed, which needs no weights. With it, masks
    are cut from what other programs found in the whole slide; how large their pixels are has to be given, and is compared with the
    size of the slide. --vae adds *_mask_<codec>.npy, the latents of the masks as white on black. A patch without mask is counted and
    named, and the exit code is then 1.

    Examples:
      pixcell masks --dataset demo --size 1024
      pixcell masks --dataset tcga --objects qupath/ --mask-mpp 0.25 --kind types --classes Tumor Stroma "Immune cells"
      pixcell masks --dataset mine --objects hgsc_nest_inst_mask.npz --mask-mpp 0.5 --kind labels
    """
    import sys
    from contextlib import closing

    from tqdm import tqdm

    from diffusion.data.features.loose import check_or_write_record, features_folder
    from diffusion.data.index.patch_index import PatchIndex, find_keys, index_keys, index_path, iterate_names, split_key
    from diffusion.data.nuclei.making import MaskMaker, make_masks
    from diffusion.formats import NETWORK_MPP
    from diffusion.utils.errors import InputError
    from diffusion.utils.hardware import count_cores
    from diffusion.utils.text import default_root

    if objects is not None and mask_mpp is None:
        raise InputError("--objects without --mask-mpp: say how many microns a pixel of it is; 0.25 at 40x, 0.5 at 20x")
    if objects is None and (mask_mpp is not None or classes):
        raise InputError("--mask-mpp and --classes are of --objects, and none is given")
    if kind == "types" and not classes:
        raise InputError("--kind types: which classes? Name them with --classes, in the order of their numbers")
    if not suffix.startswith("mask"):
        raise InputError(f"--suffix {suffix}: expected one that begins with mask, by which masks are told from patches")
    root = root or default_root()
    path = index_path(root, index)
    (key,) = find_keys(index_keys(path), [dataset], (size,))
    size = split_key(key)[1]
    maker = MaskMaker(root, size, features, suffix, kind, objects, mask_mpp or NETWORK_MPP, tuple(classes))
    patches, folder = PatchIndex(path, [key]), features_folder(root, features)
    check_or_write_record(folder, key, {suffix: {"kind": kind, "classes": list(classes)}}, "--suffix", ".png")
    made, nuclei, wrong = 0, 0, []
    with closing(make_masks(maker, iterate_names(path, key), workers or count_cores())) as outcomes:
        for outcome in tqdm(outcomes, total=len(patches), unit="patch", desc=key):
            if outcome.error is not None:
                if on_error == "raise":
                    raise InputError(outcome.error)
                wrong.append(outcome)
                tqdm.write(f"left out: {outcome.name}: {outcome.error}", file=sys.stderr)
            elif outcome.objects is not None:
                made, nuclei = made + 1, nuclei + outcome.objects
    there = len(patches) - made - len(wrong)
    mean = f", {nuclei / made:.1f} objects each" if made else ""
    print(f"{key}: {made} masks written{mean}; {there} were there, {len(wrong)} left out")
    print(f"in {folder}: *_{suffix}.png")
    if vae is not None:
        left = {outcome.name for outcome in wrong}
        names = (name for name in iterate_names(path, key) if name not in left)
        wrong += encode(names, folder, key, size, suffix, vae, root, batch_size or 16, device, len(patches) - len(left))
    return 1 if wrong else 0


def encode(
    names: Iterable[str],
    folder: Path,
    key: str,
    size: int,
    suffix: str,
    vae: str,
    root: Path,
    batch_size: int,
    device: str,
    total: int,
) -> list[Outcome]:
    """Write the latents of masks, say how many, and return those that could not be."""
    import sys

    from tqdm import tqdm

    from diffusion.components import resolve_vae
    from diffusion.data.features.loose import check_or_write_record
    from diffusion.encoders.latents import LatentCodec
    from diffusion.extraction import default_latent_suffix, encode_masks
    from diffusion.utils.hardware import prepare_device

    location = resolve_vae(vae, root)
    codec, latents = LatentCodec.load(location, prepare_device(device)), default_latent_suffix(location)
    made_by = {f"{suffix}_{latents}": {"weights": codec.fingerprint, "window": WINDOW}}
    check_or_write_record(folder, key, made_by, "--suffix")
    written, wrong = 0, []
    outcomes = encode_masks(names, folder, size, suffix, codec, latents, batch_size)
    for outcome in tqdm(outcomes, total=total, unit="mask"):
        written += outcome.written
        if outcome.error is not None:
            wrong.append(outcome)
            tqdm.write(f"left out: {outcome.error}", file=sys.stderr)
    print(f"{written} masks encoded, {total - written - len(wrong)} were there: *_{suffix}_{latents}.npy")
    return wrong
