"""Sample pictures of any size from a network of 1024 (or 512) pixels, in overlapping windows whose predictions are blended."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone

from diffusion.cli.parser import positive_float, positive_int, run
from diffusion.cli.sampling_options import sampler_parser, session_arguments, solver_arguments
from diffusion.formats import REAL_DIR, SYNTHETIC_DIR, WINDOW
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

    from diffusion.generation.conditions import NamedCondition
    from diffusion.generation.regions import Region
    from diffusion.generation.session import Session
    from diffusion.generation.sources import Origin

EXAMPLES = """  python tools/sample_4k.py --output_dir samples_4k --num_samples 100 --num_timesteps 20 --guidance_scale 2 \\
      --sliding_window_size 64 --gpu_id 0
  python tools/sample_4k.py --workdir output/1024 --slide slide.svs --x 20000 --y 12000 --num_samples 1
  python tools/sample_4k.py --workdir output/1024 --reference tissue.png --height 2048 --width 3072 --num_samples 1"""


def parse_arguments() -> argparse.Namespace:
    parser = sampler_parser(__doc__ or "", EXAMPLES, (None, "windows"), "samples_4k")
    add = parser.add_argument
    add("--n_images", "--num_samples", type=positive_int, default=1, help="how many")
    add("--height", type=token_multiple, default=4096, help=f"of the picture in pixels, a multiple of {WINDOW}")
    add("--width", type=token_multiple, default=4096, help=f"of the picture in pixels, a multiple of {WINDOW}")
    add("--reference", type=Path, help="an image that conditions, embedded now, from its top left corner on")
    add("--slide", type=Path, help="a slide whose region conditions, embedded now at --mpp")
    add("--x", type=int, default=0, help="left edge of that region, in pixels of the slide's finest level")
    add("--y", type=int, default=0, help="its top edge")
    add(
        "--tokens",
        type=Path,
        help=f"an .npy file of embeddings that condition: (height / {WINDOW}, width / {WINDOW}, D)",
    )
    add(
        "--mpp",
        type=positive_float,
        default=0.5,
        help="microns per pixel: of the network, and of a slide when it is read",
    )
    add("--image_mpp", type=positive_float, help="microns per pixel of the slide, whatever it says itself")
    add(
        "--sliding_window_size",
        "--stride",
        type=positive_int,
        help="cells of the latents, 8 pixels each, from one window to the next [half the network's, 64 at 1024 pixels]",
    )
    add("--decode_tile", type=positive_int, default=64, help="cells a side that the VAE decodes at once")
    add(
        "--format",
        choices=("auto", "png", "tiff"),
        default="auto",
        help="auto: png up to 8192 pixels a side, then tiff",
    )
    return parser.parse_args()


def token_multiple(text: str) -> int:
    """An argparse type: 256, 512, 768, ..."""
    value = int(text)
    if value < WINDOW or value % WINDOW:
        raise argparse.ArgumentTypeError(f"got {value}, expected a multiple of {WINDOW}")
    return value


def main() -> None:
    args = parse_arguments()
    given = [name for name in ("reference", "slide", "tokens") if getattr(args, name) is not None]
    if len(given) > 1:
        raise InputError(f"--{' and --'.join(given)}: one of them conditions; give one")

    from tqdm import tqdm

    from diffusion.generation.generators import LargeImageMaker
    from diffusion.generation.image_files import LARGEST_PNG, write_large_image
    from diffusion.generation.output_folder import OutputFolder
    from diffusion.generation.regions import region_bands
    from diffusion.generation.session import open_session
    from diffusion.generation.solver import Solver
    from diffusion.utils.hardware import describe_device, windows_per_pass

    session = open_session(**session_arguments(args), solver=Solver(**solver_arguments(args)))
    state, side = session.state, session.run.config.input_size
    rows, columns = args.height // WINDOW, args.width // WINDOW
    stride = args.sliding_window_size or side // 2
    batch_size = args.batch_size or windows_per_pass(session.device, side)
    make = LargeImageMaker(session.run, session.codec, args.seed, session.solver, stride, batch_size, args.decode_tile)
    windows = len(make.windows(rows, columns).corners)
    on = describe_device(session.device, state.num_processes, args.precision)
    state.print(
        f"{session.run.folder}: {args.height} x {args.width} pixels, {windows} windows, {batch_size} at once, on {on}"
    )
    if windows > 1 and stride > side * 3 // 4:
        state.print(
            f"windows of {side} cells, {stride} apart, hardly overlap: seams will show; {side // 2} apart they do not"
        )

    if min(rows, columns) * WINDOW < session.run.config.image_size:
        state.print(
            f"smaller than the network's {session.run.config.image_size} pixels: the corner of a larger picture"
        )

    with open_region(args, state.print) as region:
        condition_of, origin = choose_conditions(args, session, region, rows, columns)
        large = max(args.height, args.width) > LARGEST_PNG
        folder = OutputFolder(
            args.out_dir, "tiff" if args.format == "tiff" or (args.format == "auto" and large) else "png"
        )
        todo = folder.list_missing(args.n_images, has_real=lambda i: region is not None)
        if state.is_main_process:
            size = {"height": args.height, "width": args.width, "stride": stride, "mpp": args.mpp}
            details = {"decode_tile": args.decode_tile, "format": folder.extension, **origin.content}
            folder.check_or_write_settings(
                {"pictures": "large", **session.settings, **size, **details}, {**session.locations, **origin.locations}
            )
        state.wait_for_everyone()  # every process has looked before one of them writes
        for i in todo[state.process_index :: state.num_processes]:
            condition, size = condition_of(i), (args.height, args.width, args.mpp)
            quiet = not state.is_main_process
            with tqdm(total=args.sampling_steps, unit="step", desc=condition.name, disable=quiet) as progress:
                latents = make.latents(i, condition.condition, on_step=partial(advance, progress))
            path = folder.image_path(SYNTHETIC_DIR, i, condition.name)
            note = {**session.image_metadata(i), "stride": stride, "condition": condition.name}
            write_large_image(path, make.bands(latents), *size, note)
            if region is not None:
                real = region_bands(region, rows, columns)
                write_large_image(
                    folder.image_path(REAL_DIR, i, condition.name), real, *size, {"condition": condition.name}
                )
            print(f"written: {path}")
            if i == todo[0] and batch_size < windows:
                session.print_batch_advice(batch_size)
    state.wait_for_everyone()


def advance(progress: tqdm, *_: object) -> None:
    """Move a progress bar by one step."""
    progress.update()


@contextmanager
def open_region(args: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Region | None]:
    """The part of a slide or image that conditions, if one does. Raises MissingError, or InputError when it is too small."""
    from diffusion.data.slides.reader import PlainImage, open_slide
    from diffusion.generation.regions import Region

    path = args.slide or args.reference
    if path is None:
        yield None
        return
    if args.slide is None and (args.x or args.y):
        raise InputError("--x and --y are of a region of --slide; --reference begins at its top left corner")
    with closing(open_slide(path, args.mpp, args.image_mpp) if args.slide else PlainImage(path)) as slide:
        x, y = round(args.x / slide.factor), round(args.y / slide.factor)
        over = (y + args.height - slide.height, x + args.width - slide.width)
        if min(x, y) < 0 or max(over) >= WINDOW:  # less is filled up with white: sides are multiples, slides are not
            raise InputError(
                f"{path} has {slide.height} x {slide.width} pixels ({slide.note}), from which {args.height} x {args.width} "
                f"at y {y}, x {x} reach out; give a smaller --height and --width, or another region"
            )
        if max(over) > 0:
            say(f"{path} ends {max(over)} pixels before the picture: what lies beyond is read as white glass")
        yield Region(slide, x, y)


def choose_conditions(
    args: argparse.Namespace, session: Session, region: Region | None, rows: int, columns: int
) -> tuple[Callable[[int], NamedCondition], Origin]:
    """Choose the condition of picture i, a grid of tokens (rows, columns, D); and say what conditions are of."""
    from diffusion.condition import Condition
    from diffusion.generation.conditions import NamedCondition, neighbourhood, read_tokens_file
    from diffusion.generation.regions import embed_region
    from diffusion.generation.sources import ConditionSource, Origin, identify_files, index_origin, open_index

    if region is None and args.tokens is None:
        dataset = open_index(session, ConditionSource())
        return lambda i: neighbourhood(dataset, i, args.seed, rows, columns), index_origin(dataset)
    path = args.tokens or args.slide or args.reference
    origin = identify_files(session, [path], embedded=region is not None)
    if region is not None:
        place = {"x": args.x, "y": args.y, "image_mpp": args.image_mpp}
        name = f"{path.stem}_{args.x}_{args.y}" if args.slide else path.stem
        embedded = cache(lambda: embed_region(region, rows, columns, session.embedder))  # when the first is sampled
        return lambda i: NamedCondition(name, Condition(embedded()[None])), Origin({**origin, **place}, {})
    grid, wanted = read_tokens_file(path), (rows, columns, session.run.config.caption_channels)
    if tuple(grid.shape) != wanted:
        raise InputError(
            f"{path} holds tokens {tuple(grid.shape)}: expected {wanted}, one for each {WINDOW} pixels a side"
        )
    return lambda i: NamedCondition(path.stem, Condition(grid[None])), Origin(origin, {})


if __name__ == "__main__":
    run(main)
