"""Cut slides and images into square patches of tissue at one resolution.

Patches go to OUT/<dataset>/<cohort>/single_<size>/<slide>/<x>_<y>.jpeg. One that is there already is not made again, so a
run that was stopped goes on where it was. A slide that cannot be read is reported, and the others go on; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from tqdm import tqdm

from diffusion.cli import positive_int, run, tool_parser
from diffusion.data import slides
from diffusion.data.slides import Grid, TissueMask
from diffusion.errors import InputError

EXAMPLES = """  python tools/extract_patches.py --slides slides/ --dataset tcga --cohort brca
  python tools/extract_patches.py --slides nest.jpg --image_mpp 0.25 --dataset demo --cohort ovary --step 256 --area 0 0 0.75 1
"""


@dataclass(frozen=True)
class Counts:
    """What became of one slide's grid positions."""

    kept: int  # patches on disk now
    dropped: int  # with too little tissue
    new: int  # of the kept ones, those made now
    note: str


def main() -> int:
    args = parse_args()
    grid = Grid(args.size, args.step, tuple(args.area))
    paths = slides.find_slides(args.slides)
    out = args.out or args.root / "patches"
    counts: dict[Path, Counts] = {}
    failures: dict[Path, str] = {}
    for path in tqdm(paths, unit="slide", disable=len(paths) == 1):
        try:
            counts[path] = extract(
                path, slides.slide_folder(out, args.dataset, args.cohort, args.size, path.stem), grid, args
            )
        except (InputError, OSError) as error:
            failures[path] = str(error)
            tqdm.write(f"failed: {error}", file=sys.stderr)
    print_table(counts, failures)
    return 1 if failures else 0


def extract(path: Path, folder: Path, grid: Grid, args: argparse.Namespace) -> Counts:
    """Write the patches of one slide that hold enough tissue."""
    slide = slides.open_slide(path, args.mpp, args.image_mpp)
    try:
        if slide.note == "native":
            tqdm.write(f"{path.name}: plain image, taken pixel for pixel (no --image_mpp)")
        tissue = TissueMask(slide)
        corners = grid.corners(slide.width, slide.height)
        kept = [(x, y) for x, y in corners if tissue.fraction(x, y, grid.size) >= args.tissue_threshold]
        wanting = [(x, y) for x, y in kept if not slides.patch_file(folder, x, y).is_file()]
        if wanting:
            folder.mkdir(parents=True, exist_ok=True)
        for x, y in tqdm(wanting, desc=path.name, unit="patch", leave=False):
            slides.save_patch(slide.read(x, y, grid.size), slides.patch_file(folder, x, y), args.quality)
        note = f"{slide.width}x{slide.height}, {slide.note}" + ("" if corners else f"; no patch of {grid.size} fits")
        return Counts(len(kept), len(corners) - len(kept), len(wanting), note)
    finally:
        slide.close()


def print_table(counts: dict[Path, Counts], failures: dict[Path, str]) -> None:
    rows = [("slide", "kept", "dropped", "new", "read at")]
    rows += [(path.name, str(c.kept), str(c.dropped), str(c.new), c.note) for path, c in counts.items()]
    rows += [(path.name, "failed", "-", "-", reason) for path, reason in failures.items()]
    done = counts.values()
    rows += [
        ("total", str(sum(c.kept for c in done)), str(sum(c.dropped for c in done)), str(sum(c.new for c in done)), "")
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for name, *numbers, note in rows:
        cells = [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))]
        print("  ".join([*cells, note]).rstrip())


def parse_args() -> argparse.Namespace:
    parser = tool_parser(__doc__, EXAMPLES, networks=False, draws=False)
    parser.add_argument(
        "--slides", type=Path, nargs="+", required=True, metavar="PATH", help="slides, images, or folders of them"
    )
    parser.add_argument("--out", type=Path, help="folder of the data sets [ROOT/patches]")
    parser.add_argument(
        "--dataset", type=plain_name, required=True, help="first folder below OUT, and the name in the index"
    )
    parser.add_argument("--cohort", type=plain_name, required=True, help="folder below the data set, such as an organ")
    parser.add_argument("--size", type=positive_int, default=1024, help="pixels a side [%(default)s]")
    parser.add_argument(
        "--step",
        type=positive_int,
        help="pixels from one patch to the next; less than --size makes them overlap [--size]",
    )
    parser.add_argument(
        "--mpp", type=positive_float, default=0.5, help="microns per pixel of the patches [%(default)s: 20x]"
    )
    parser.add_argument(
        "--image_mpp",
        type=positive_float,
        help="microns per pixel of plain images, which do not say [taken pixel for pixel]",
    )
    parser.add_argument(
        "--tissue_threshold", type=fraction, default=0.5, help="part of a patch that must be tissue [%(default)s]"
    )
    parser.add_argument(
        "--area",
        type=float,
        nargs=4,
        default=slides.WHOLE_SLIDE,
        metavar=("X0", "Y0", "X1", "Y1"),
        help="part of each slide to take, as fractions of its width and height; patches lie wholly inside [0 0 1 1]",
    )
    parser.add_argument(
        "--quality", type=jpeg_quality, default=95, help="JPEG quality, without colour subsampling [%(default)s]"
    )
    args = parser.parse_args()
    args.step = args.step or args.size
    if args.dataset == "metadata":
        raise InputError("--dataset metadata: ROOT/patches/metadata is where the index lies; take another name")
    return args


def plain_name(text: str) -> str:
    if not text or text in (".", "..") or any(mark in text for mark in "/\\"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one folder name")
    return text


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, expected a number above 0")
    return value


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
