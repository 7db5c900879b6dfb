"""pixcell codec."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffusion.cli import options
from diffusion.cli.parser import natural_int
from diffusion.cli.signature import Here, Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.formats import DEFAULT_INDEX, DEFAULT_VAE
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from diffusion.evaluation.metrics.intervals import Value
    from diffusion.evaluation.reconstruction import CodecQuality
    from diffusion.evaluation.sets.random_windows import RandomWindows


@checked
def codec(
    vae: Annotated[
        Sequence[str],
        Option(
            f"{options.CODEC} [{DEFAULT_VAE}]",
            metavar="VAE",
            note=", below ROOT or here; several are compared with the first",
            completes="folder",
        ),
    ] = (DEFAULT_VAE,),
    images: Annotated[
        Path | None, Option(options.IMAGES, metavar="DIR", note=": a folder of them, of any size")
    ] = None,
    dataset: options.AnyDatasets = None,
    index: options.DataIndex = DEFAULT_INDEX,
    out: options.OutFolder = Path("codec"),
    count: Annotated[options.Count, Here("256")] = 256,
    size: Annotated[options.Size, Here(note=" of the windows that are compared, a multiple of 8")] = 256,
    seed: options.Seed = 0,
    encoder: Annotated[str, Option(options.ENCODER, completes="file")] = "mobilenetv2",
    examples: Annotated[int, Option("best, median and worst windows on the sheet, each; 0: no sheet", natural_int)] = 2,
    strict: options.Strict = False,
    root: options.Root = None,
    batch_size: options.BatchSize = 8,
    precision: options.Precision = "fp32",
    device: options.Device = "auto",
    *,
    published: bool = False,
) -> None:
    """Measure how well latent codecs reconstruct your own patches.

    PSNR, SSIM and distances in an encoder's features, with pictures. All codecs see the same windows of --size, --count of them
    drawn at random from a folder or from the patches of an index; windows are encoded, decoded from the posterior's mean,
    rounded to 8 bits and compared. OUT gets scores.json, scores.csv (a row a codec) and sheet.png: the first codec's best,
    median and worst windows by PSNR, what each codec makes of them, and the differences; of windows beyond 256 pixels their
    middle.

    Examples:
      pixcell codec --vae tiny pretrained_models/sd-3.5-vae --images patches/mine/ --count 256 --out vae_check
      pixcell codec --dataset mine_1024 --size 512 --encoder uni2
      pixcell codec --root data/demo --vae tiny --dataset demo_heldout_256
    """
    count, batch_size = count or 256, batch_size or 8
    if count < 2:
        raise InputError(f"--count {count}: expected at least 2 windows")
    if images is not None and dataset is not None:
        raise InputError("--images and --dataset: patches are taken from one of them; give one")
    if images is not None:
        refuse_unused(codec, {"index": index}, "beside --images", published)

    from diffusion.components import name_codecs
    from diffusion.data.index.patch_index import PatchIndex, find_keys, index_keys, index_path
    from diffusion.encoders.embedders import PatchEmbedder
    from diffusion.encoders.latents import LatentCodec
    from diffusion.evaluation.reconstruction import check_window_size, embed_originals, measure_codec
    from diffusion.evaluation.reports.reconstruction_sheet import draw_sheet, write_scores
    from diffusion.evaluation.sets.random_windows import ImageFiles, draw_windows
    from diffusion.generation.image_files import labelled_grid, save_image
    from diffusion.utils.hardware import prepare_device, torch_dtype
    from diffusion.utils.text import default_root

    check_window_size(size, LatentCodec.factor)
    home = root or default_root()
    place = prepare_device(device)
    # All that can be refused is read before a network runs.
    codecs = {
        name: LatentCodec.load(location, place, torch_dtype(precision))
        for name, location in name_codecs(vae, home).items()
    }
    embedder = PatchEmbedder.load(encoder, place, root=home)
    if images is None:
        path = index_path(home, index)
        keys = find_keys(index_keys(path), dataset) if dataset else None
        files = ImageFiles.from_index(home, PatchIndex(path, keys))
    else:
        files = ImageFiles.from_folder(images)
    windows = draw_windows(files, count, size, seed, strict)
    print_unusable(windows, count)

    features = embed_originals(windows, embedder, batch_size)
    qualities = [measure_codec(name, each, windows, features, embedder, batch_size) for name, each in codecs.items()]
    about = {
        "images": str(windows.folder),
        "size": size,
        "seed": seed,
        "encoder": {"name": embedder.name, "weights": embedder.fingerprint},
        "precision": precision,
        "device": place.type,
    }
    sheet = out / "sheet.png"
    if examples:
        save_image(sheet, labelled_grid(draw_sheet(codecs, windows, qualities, examples, batch_size)), about)
    else:
        sheet.unlink(missing_ok=True)  # that of an earlier run would not fit the new scores
    write_scores(out, qualities, {name: each.fingerprint for name, each in codecs.items()}, windows, about)
    print_summary(qualities, windows)
    print(f"written: {out}")


def print_unusable(windows: RandomWindows, wanted: int) -> None:
    """Print to stderr which images were left out, and whether there are fewer windows than wanted."""
    for reason in windows.bad.values():
        print(f"left out: {reason}", file=sys.stderr)
    if windows.bad:
        print(f"note: {len(windows.bad)} images left out", file=sys.stderr)
    if len(windows) < wanted:
        print(f"note: the images hold {len(windows)} windows of {windows.size} pixels, not {wanted}", file=sys.stderr)


def print_summary(qualities: Sequence[CodecQuality], windows: RandomWindows) -> None:
    """Print the table of scores, and the differences of the other codecs to the first."""
    from diffusion.evaluation.reconstruction import QUALITY_LABELS
    from diffusion.utils.text import format_table

    print(f"{len(windows)} windows of {windows.size} pixels, {windows.folder}; means with 95 % intervals")
    rows = [("codec", *QUALITY_LABELS.values(), "Frechet", "latents/pixel", "s/window", "parameters")]
    for each in qualities:
        means = [format_interval(value) for value in each.means.values()]
        cost = (f"{each.latents_per_pixel:g}", f"{each.seconds:.3g}", f"{each.parameters / 1e6:.1f} M")
        rows.append((each.codec, *means, f"{each.frechet:.4g}", *cost))
    print(format_table(rows))
    if len(qualities) > 1:
        print(f"differences to {qualities[0].codec}, window by window")
        differences = [each.difference_to(qualities[0]).values() for each in qualities[1:]]
        names = [each.codec for each in qualities[1:]]
        cells = [
            (name, *(format_interval(value, "+") for value in values))
            for name, values in zip(names, differences, strict=True)
        ]
        print(format_table([("codec", *QUALITY_LABELS.values()), *cells]))


def format_interval(value: Value, sign: str = "") -> str:
    """Return a value with its interval, such as `0.9243 [0.9128, 0.9346]`; sign: "+" to show that of positive numbers, too."""
    mean, low, high = value
    return f"{mean:{sign}.4g} [{low:{sign}.4g}, {high:{sign}.4g}]"
