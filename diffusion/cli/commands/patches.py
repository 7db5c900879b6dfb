"""pixcell patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffusion.cli import options
from diffusion.cli.parser import output_folder
from diffusion.cli.signature import Here, Option, checked
from diffusion.data.slides.grid import WHOLE_SLIDE
from diffusion.formats import ORIENTATIONS

if TYPE_CHECKING:
    from diffusion.data.slides.records import SlideRecord

MAX_TABLE_ROWS = 40  # a table of more slides is for no one to read: their records are in files


@checked
def patches(
    slides: Annotated[
        Sequence[Path],
        Option("slides, images, folders of them, or .txt files that list them, one path a line", metavar="PATH"),
    ],
    dataset: options.Dataset,
    cohort: options.Cohort = "all",
    size: options.Size = 1024,
    stride: options.Stride = None,
    mpp: Annotated[options.Mpp, Here(note="; of the patches, and of the network")] = 0.5,
    image_mpp: options.ImageMpp = None,
    tissue_threshold: options.TissueThreshold = 0.5,
    max_blur: options.MaxBlur = 0.68,
    area: options.Area = WHOLE_SLIDE,
    quality: options.JpegQuality = 95,
    orientation: Annotated[
        str | None,
        Option(
            "turn or mirror every patch, for further training tissue from few slides; each orientation needs a --cohort of its own "
            "[as the slide is]",
            choices=ORIENTATIONS,
        ),
    ] = None,
    workers: options.WorkersPerCore = None,
    out: Annotated[Path | None, Option(f"{options.OUT} [ROOT/patches]", output_folder, metavar="FOLDER")] = None,
    root: options.Root = None,
) -> int:
    """Cut slides and images into square patches of tissue.

    All patches have one resolution. They go to OUT/<dataset>/<cohort>/single_<size>/<slide>/<column>_<row>.jpeg. Beside them,
    OUT/<dataset>/<cohort>/slides_<size>/ gets one picture a slide with the squares kept and dropped, and one record. A slide that is
    finished is not made again, and one that a stopped run left half done is. A slide that cannot be read is reported, and the
    others go on; the exit code is then 1.

    Examples:
      pixcell patches --slides slides/ --dataset tcga --cohort brca --workers 16
      pixcell patches --slides list_of_slides.txt --dataset tcga --cohort brca
      pixcell patches --slides nest.jpg --image-mpp 0.25 --dataset demo --cohort ovary --stride 256 --area 0 0 0.75 1
    """
    import sys

    from tqdm import tqdm

    from diffusion.data.slides.cohort import cut_cohort
    from diffusion.data.slides.discovery import find_slides
    from diffusion.data.slides.grid import Grid
    from diffusion.data.slides.reader import PIXEL_FOR_PIXEL
    from diffusion.data.slides.records import CutSettings, SlideRecord
    from diffusion.formats import METADATA_DIR, PATCHES_DIR
    from diffusion.utils.errors import InputError
    from diffusion.utils.files import check_writable
    from diffusion.utils.hardware import count_cores
    from diffusion.utils.text import abbreviate, default_root

    if dataset == METADATA_DIR:
        raise InputError("--dataset metadata: ROOT/patches/metadata is where the index lies; take another name")
    x0, y0, x1, y1 = area
    settings = CutSettings(
        Grid(size, stride or size, (x0, y0, x1, y1)), mpp, image_mpp, tissue_threshold, max_blur, quality, orientation
    )
    found = find_slides(slides)
    paths = [*found.paths, *found.refused]
    folder = (out or (root or default_root()) / PATCHES_DIR) / dataset / cohort
    check_writable(folder)
    records: dict[Path, SlideRecord] = {}
    failures: dict[Path, str] = {}
    with closing(cut_cohort(found, folder, settings, workers or count_cores())) as outcomes:
        for path, outcome in tqdm(outcomes, total=len(paths), unit="slide", disable=len(paths) == 1):
            if isinstance(outcome, SlideRecord):
                records[path] = outcome
            else:
                failures[path] = str(outcome)
                tqdm.write(f"failed: {outcome}", file=sys.stderr)
    print_table([records[path] for path in paths if path in records], failures)
    print(f"pictures and records: {folder / f'slides_{size}'}")
    unsaid = [record.slide for record in records.values() if record.note == PIXEL_FOR_PIXEL]
    if unsaid:
        print(
            f"{abbreviate(unsaid)}: no microns per pixel in the file, so taken pixel for pixel, as {mpp:g} um/px; if that is not "
            "so, delete their patches and give --image-mpp (files of one resolution in a call)"
        )
    kept = any(record.patches for record in records.values())
    if records and not kept:
        print(
            "no patch was kept: the pictures show why each square was dropped; see --tissue-threshold, --max-blur, --size"
        )
    return 0 if kept and not failures else 1


def print_table(records: Sequence[SlideRecord], failures: Mapping[Path, str]) -> None:
    """Print slides with their patches, what was dropped and why, and seconds; totals; failures."""
    from diffusion.data.slides.cutting import REASONS
    from diffusion.utils.text import format_table

    shown = [reason for reason in REASONS if any(record.dropped.get(reason) for record in records)]
    rows = [("slide", "patches", *shown, "seconds", "read at")]
    for record in records if len(records) <= MAX_TABLE_ROWS else ():
        dropped = [str(record.dropped.get(reason, 0)) for reason in shown]
        note = record.note + ("; made before" if record.is_earlier else "")
        rows.append((record.slide, str(record.patches), *dropped, f"{record.seconds:.1f}", note))
    total: Counter[str] = sum((Counter(record.dropped) for record in records), Counter())
    before = sum(record.is_earlier for record in records)
    note = f"{before} of them made before" if before else ""
    seconds = sum(record.seconds for record in records)
    numbers = (str(sum(record.patches for record in records)), *(str(total[reason]) for reason in shown))
    rows.append((f"{len(records)} slides", *numbers, f"{seconds:.1f}", note))
    print(format_table(rows, "l" + "r" * (len(rows[0]) - 2) + "l"))
    for path, reason in failures.items():
        print(f"failed: {path.name}: {reason}")
