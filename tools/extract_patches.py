"""Cut slides and images into square patches of tissue at one resolution.

Patches go to OUT/<dataset>/<cohort>/single_<size>/<slide>/<column>_<row>.jpeg. Beside them, OUT/<dataset>/<cohort>/slides_<size>/
gets one picture a slide with the squares kept and dropped, and one record. A slide that is finished is not made again, and
one that a stopped run left half done is. A slide that cannot be read is reported, and the others go on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from tqdm import tqdm

from diffusion.cli.parser import output_folder, plain_name, positive_float, positive_int, run, tool_parser
from diffusion.data.slides.cutting import REASONS, cut_slide
from diffusion.data.slides.discovery import find_slides
from diffusion.data.slides.grid import WHOLE_SLIDE, Grid
from diffusion.data.slides.records import CutSettings, SlideRecord, find_record
from diffusion.formats import METADATA_DIR, PATCHES_DIR
from diffusion.utils.errors import InputError
from diffusion.utils.files import check_writable
from diffusion.utils.hardware import count_cores
from diffusion.utils.text import format_table

EXAMPLES = """  python tools/extract_patches.py --slides slides/ --dataset tcga --cohort brca --workers 16
  python tools/extract_patches.py --slides list_of_slides.txt --dataset tcga --cohort brca
  python tools/extract_patches.py --slides nest.jpg --image_mpp 0.25 --dataset demo --cohort ovary --step 256 --area 0 0 0.75 1
"""
MAX_TABLE_ROWS = 40  # a table of more slides is for no one to read: their records are in files


def main() -> int:
    args = parse_args()
    grid = Grid(args.size, args.step or args.size, tuple(args.area))
    settings = CutSettings(grid, args.mpp, args.image_mpp, args.tissue_threshold, args.max_blur, args.quality)
    slides = find_slides(args.slides)
    paths = [*slides.paths, *slides.refused]
    cohort = (args.out or args.root / PATCHES_DIR) / args.dataset / args.cohort
    check_writable(cohort)
    work = partial(
        cut_in_process, cohort=cohort, settings=settings, show=min(args.workers, len(paths)) == 1, parent=os.getpid()
    )
    known: dict[Path, SlideRecord | InputError | None] = {
        path: find_finished(path, cohort, settings) for path in slides.paths
    }
    known |= {path: InputError(reason) for path, reason in slides.refused.items()}
    waiting = [path for path in paths if known[path] is None]
    done = ((path, outcome) for path, outcome in known.items() if outcome is not None)
    records: dict[Path, SlideRecord] = {}
    failures: dict[Path, str] = {}
    with closing(run_isolated(work, waiting, args.workers)) as cut_now:
        outcomes = tqdm(chain(done, cut_now), total=len(paths), unit="slide", disable=len(paths) == 1)
        for path, outcome in outcomes:
            if isinstance(outcome, SlideRecord):
                records[path] = outcome
            else:
                failures[path] = str(outcome)
                tqdm.write(f"failed: {outcome}", file=sys.stderr)
    print_table([records[path] for path in paths if path in records], failures)
    print(f"pictures and records: {cohort / f'slides_{args.size}'}")
    if not any(record.patches for record in records.values()):
        print(
            "no patch was kept: the pictures show why each square was dropped; see --tissue_threshold, --max_blur, --size"
        )
        return 1
    return 1 if failures else 0


def find_finished(path: Path, cohort: Path, settings: CutSettings) -> SlideRecord | InputError | None:
    """Return the record of a slide that is finished, or why it cannot be cut; None for one to cut."""
    try:
        return find_record(path, cohort, settings)
    except InputError as error:
        return error


def exit_with_parent(process: int) -> None:
    """End this process when that one is gone: one that is killed cannot take its children along."""
    while True:
        time.sleep(1)
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            os._exit(1)


def cut_in_process(
    path: Path, cohort: Path, settings: CutSettings, show: bool, parent: int
) -> SlideRecord | InputError | OSError:
    """Cut one slide, in a process of its own; show: with a bar of its squares."""
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
    try:
        bar = partial(tqdm, desc=path.name, unit="square", leave=False, disable=not show)
        return cut_slide(path, cohort, settings, bar)
    except (InputError, OSError) as error:
        return InputError(str(error))


def run_isolated(
    work: Callable[[Path], SlideRecord | Exception], paths: list[Path], workers: int
) -> Generator[tuple[Path, SlideRecord | Exception]]:
    """Yield each path with what `work` returns for it, as they finish, `workers` at a time.

    Every path has a process of its own: slide readers are native code, and one that dies of a broken slide, or of too
    little memory, takes no other slide along.
    """
    context = get_context("forkserver" if sys.platform != "win32" else "spawn")

    def alone(path: Path) -> SlideRecord | Exception:
        with ProcessPoolExecutor(1, mp_context=context) as process:
            try:
                return process.submit(work, path).result()
            except BrokenProcessPool:
                return InputError(f"{path}: the process that read it died; it is broken, or memory ran out")
            except Exception as error:  # whatever a reader makes of a broken slide, the others go on
                return InputError(f"{path}: {type(error).__name__}: {error}")

    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(alone, path): path for path in paths}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def print_table(records: list[SlideRecord], failures: dict[Path, str]) -> None:
    """Print slides with their patches, what was dropped and why, and seconds; totals; failures."""
    shown = [reason for reason in REASONS if any(record.dropped.get(reason) for record in records)]
    rows = [("slide", "patches", *shown, "seconds", "read at")]
    for record in records if len(records) <= MAX_TABLE_ROWS else ():
        dropped = [str(record.dropped.get(reason, 0)) for reason in shown]
        note = record.note + ("; made before" if record.is_earlier else "")
        rows.append((record.slide, str(record.patches), *dropped, f"{record.seconds:.1f}", note))
    total: Counter = sum((Counter(record.dropped) for record in records), Counter())
    before = sum(record.is_earlier for record in records)
    note = f"{before} of them made before" if before else ""
    seconds = sum(record.seconds for record in records)
    numbers = (str(sum(record.patches for record in records)), *(str(total[reason]) for reason in shown))
    rows.append((f"{len(records)} slides", *numbers, f"{seconds:.1f}", note))
    print(format_table(rows, "l" + "r" * (len(rows[0]) - 2) + "l"))
    for path, reason in failures.items():
        print(f"failed: {path.name}: {reason}")


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__ or "", EXAMPLES, networks=False, draws=False)
    add = parser.add_argument
    add(
        "--slides", type=Path, nargs="+", required=True, metavar="PATH",
        help="slides, images, folders of them, or .txt files that list them, one path a line",
    )  # fmt: skip
    add("--out", type=output_folder, help="folder of the data sets [ROOT/patches]")
    add("--dataset", type=plain_name, required=True, help="first folder below OUT, and the name in the index")
    add("--cohort", type=plain_name, default="all", help="folder below the data set, such as an organ")
    add("--size", type=positive_int, default=1024, help="pixels a side [%(default)s]")
    add(
        "--step", type=positive_int,
        help="pixels from one patch to the next; less than --size makes them overlap [--size]",
    )  # fmt: skip
    add("--mpp", type=positive_float, default=0.5, help="microns per pixel of the patches [%(default)s: 20x]")
    add(
        "--image_mpp", type=positive_float,
        help="microns per pixel of the files named, whatever they say themselves [what each says; plain images are taken "
             "pixel for pixel, slides that do not say refused]",
    )  # fmt: skip
    add("--tissue_threshold", type=fraction, default=0.5, help="part of a patch that must be tissue [%(default)s]")
    add(
        "--max_blur", type=fraction, default=0.68,
        help="blur above which a patch counts as out of focus, by Crete-Roffet's measure; 1 keeps all [%(default)s]",
    )  # fmt: skip
    add(
        "--area", type=float, nargs=4, default=WHOLE_SLIDE, metavar=("X0", "Y0", "X1", "Y1"),
        help="part of each slide to take, as fractions of its width and height; patches lie wholly inside [0 0 1 1]",
    )  # fmt: skip
    add("--quality", type=jpeg_quality, default=95, help="JPEG quality, without colour subsampling [%(default)s]")
    add("--workers", type=positive_int, default=count_cores(), help="slides cut at a time [one per core]")
    args = parser.parse_args()
    if args.dataset == METADATA_DIR:
        raise InputError("--dataset metadata: ROOT/patches/metadata is where the index lies; take another name")
    return args


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 0 to 1")
    return value


def jpeg_quality(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 to 100")
    return value


if __name__ == "__main__":
    run(main)
