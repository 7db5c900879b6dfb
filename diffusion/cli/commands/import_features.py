"""pixcell import."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from diffusion.cli import options
from diffusion.cli.parser import positive_float
from diffusion.cli.signature import Option, checked
from diffusion.cli.unused import refuse_unused
from diffusion.formats import DEFAULT_INDEX, SSL_PREFIX

if TYPE_CHECKING:
    from diffusion.data.imports.importing import Imported
    from diffusion.data.slides.discovery import FoundSlides


@checked
def import_features(
    tool: Annotated[Literal["trident", "clam"], Option("the program that wrote the files", positional=True)],
    folder: Annotated[
        Path,
        Option(
            "folder of its .h5 files, or a folder above features_uni_v2 (trident) or h5_files (clam)", positional=True
        ),
    ],
    dataset: options.Dataset,
    cohort: options.Cohort = "all",
    size: options.Size = 256,
    slides: Annotated[
        Sequence[Path] | None,
        Option(
            "slides, images, folders of them, or .txt files that list them, one path a line [none: no pixels are cut]",
            metavar="PATH",
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        Option(f"{options.MPP} [as the files say, or the slides]", positive_float),
    ] = None,
    patch_files: Annotated[
        Path | None,
        Option("CLAM's files that say how large windows are, <slide>.h5 [patches/ beside FOLDER]", metavar="FOLDER"),
    ] = None,
    embedding_suffix: options.EmbeddingSuffix = SSL_PREFIX,
    quality: options.JpegQuality = 95,
    workers: options.WorkersPerCore = None,
    index: options.DataIndex = DEFAULT_INDEX,
    root: options.Root = None,
) -> int:
    """Take over UNI2-h embeddings that TRIDENT or CLAM computed, so that only latents are left to compute.

    Windows of 256 pixels at 20x, without overlap, become patches: with --size 256 each of them, with --size 1024 every complete
    block of 4 x 4 neighbours. Their embeddings go to ROOT/patches, as float16, and their names into the index. Latents need the
    pixels: --slides names the slides to cut the same windows from, now or in a second run, and pixcell features then computes the
    latents and leaves the embeddings alone. Embeddings of another encoder than UNI2-h need an --embedding-suffix of their own. A
    slide that is finished is passed over; a file that is damaged, or has other windows, is named, and the others go on: the
    exit code is then 1.

    Examples:
      pixcell import trident trident_processed/20x_256px_0px_overlap --dataset mine --slides slides/
      pixcell import trident features_uni_v2 --dataset mine --cohort breast --size 1024
      pixcell import clam features/h5_files --patch-files results/patches --mpp 0.5 --dataset mine
    """
    import sys

    from tqdm import tqdm

    from diffusion.data.imports.importing import ImportSettings, import_files, imported_embedding_width, merged_names
    from diffusion.data.imports.sources import find_files
    from diffusion.data.index.patch_index import index_path
    from diffusion.data.index.writer import write_index
    from diffusion.data.slides.discovery import find_slides
    from diffusion.formats import METADATA_DIR, PATCHES_DIR, WINDOW
    from diffusion.utils.errors import InputError, MissingError
    from diffusion.utils.files import check_writable
    from diffusion.utils.hardware import count_cores
    from diffusion.utils.text import default_root

    if dataset == METADATA_DIR:
        raise InputError("--dataset metadata: ROOT/patches/metadata is where the index lies; take another name")
    if size % WINDOW:
        raise InputError(f"--size {size}: expected a multiple of {WINDOW}, such as 256 or 1024")
    if patch_files is not None and tool != "clam":
        raise InputError("--patch-files is for CLAM's files; TRIDENT's say themselves how large their windows are")
    if patch_files is not None and not patch_files.is_dir():
        raise MissingError(f"--patch-files: no folder {patch_files}")
    root = root or default_root()
    if slides is None:
        refuse_unused(import_features, {"quality": quality}, "without --slides, of which patches are cut")
    settings = ImportSettings(
        tool, root, f"{dataset}/{cohort}", size, embedding_suffix, mpp, patch_files, quality, workers or count_cores()
    )
    found = find_files(tool, folder)
    pictures = None if slides is None else match_slides(find_slides(slides), found.paths)
    imported_embedding_width(settings)
    check_writable(root / PATCHES_DIR)
    done: dict[str, Imported] = {}
    failed = 0
    total = len(found.paths) + len(found.refused)
    for path, outcome in tqdm(
        import_files(found, settings, pictures), total=total, unit="slide", leave=False, disable=total == 1
    ):
        if isinstance(outcome, InputError):
            failed += 1
            tqdm.write(f"failed: {outcome}", file=sys.stderr)
        else:
            done[path.stem] = outcome
    print_outcome(done, failed, settings.key)
    places = {slide: each.places for slide, each in done.items()}
    if any(len(each) for each in places.values()):
        target = index_path(root, index)
        names = {settings.key: merged_names(target, settings, places)}
        count = write_index(target, names, previous=target if target.exists() else None)[settings.key]
        print(f"{settings.key}: {count} patches in {target}")
        command = f"pixcell features --dataset {dataset} --size {size}"
        print(
            f"next, for the latents: {command}"
            if slides
            else f"latents need the pixels: import again with --slides, then {command}"
        )
    return 1 if failed else 0


def match_slides(slides: FoundSlides, wanted: Collection[str]) -> dict[str, Path]:
    """Return slides by name. Raises InputError where two of them have one of the names wanted."""
    from diffusion.utils.errors import InputError

    for path in slides.refused:
        if path.stem in wanted:
            raise InputError(f"--slides: {path} is not the only slide called {path.stem}; name only the right one")
    names = {path.stem: path for path in slides.paths}
    return {name.removesuffix(".ome"): path for name, path in names.items()} | names  # as TRIDENT calls .ome.tif


def print_outcome(done: dict[str, Imported], failed: int, key: str) -> None:
    """Print how many slides and patches were imported, and what was left out."""
    from collections import Counter

    dropped: Counter[str] = Counter()
    for each in done.values():
        dropped.update(each.record.dropped)
    before = sum(each.record.is_earlier for each in done.values())
    patches = sum(len(each.places) for each in done.values())
    notes = [f"{before} of the slides before"] if before else []
    notes += [f"{count} {reason} left out" for reason, count in dropped.items()]
    print(f"{patches} patches of {len(done)} slides imported under {key}{''.join(f'; {note}' for note in notes)}")
    if failed:
        print(f"{failed} files could not be imported")
