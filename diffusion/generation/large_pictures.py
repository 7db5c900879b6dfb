"""Filling a folder with pictures of any size, in windows of a network's own; a folder that was begun is completed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from tqdm import tqdm

from diffusion.condition import Condition
from diffusion.data.slides.reader import PlainImage, Slide, open_slide
from diffusion.formats import REAL_DIR, SYNTHETIC_DIR, WINDOW
from diffusion.generation.conditions import NamedCondition, neighbourhood, read_numbers
from diffusion.generation.controls import check_controlled, list_controls, read_control
from diffusion.generation.generators import LargeImageMaker
from diffusion.generation.image_files import choose_extension, write_large_image
from diffusion.generation.output_folder import OutputFolder
from diffusion.generation.prior_grids import draw_condition
from diffusion.generation.priors import check_classes, identify_prior
from diffusion.generation.regions import Region, embed_region, region_bands
from diffusion.generation.session import Session
from diffusion.generation.sources import (
    ConditionSource,
    Origin,
    identify_files,
    index_origin,
    open_index,
    open_source_prior,
    with_controls,
)
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import describe_device, windows_per_pass


@dataclass(frozen=True)
class PictureSize:
    """The size of a picture in pixels, and its microns per pixel. Raises InputError for sides that are no multiples of 256."""

    height: int = 4096
    width: int = 4096
    mpp: float = 0.5

    def __post_init__(self):
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < WINDOW or value % WINDOW:
                raise InputError(f"--{name} {value}: expected a multiple of {WINDOW}")

    @property
    def rows(self) -> int:
        """Tokens from the top down."""
        return self.height // WINDOW

    @property
    def columns(self) -> int:
        """Tokens from left to right."""
        return self.width // WINDOW

    def choose_extension(self, format: str) -> str:
        """Return png or tiff, as `image_files.choose_extension` does."""
        return choose_extension(self.height, self.width, format)


@dataclass(frozen=True)
class LargeSource:
    """What large pictures are of: an image, a region of a slide, a file with a grid of tokens, or a prior; else the run's index.

    x, y: top left corner of the region, in pixels of the slide's finest level. image_mpp: microns per pixel of the
    slide, whatever it says itself. control: at most one mask or image, of the picture's size. prior: of grids of embeddings;
    classes: those that it draws from.
    Raises InputError for several of them, and a corner without a slide.
    """

    reference: Path | None = None
    slide: Path | None = None
    x: int = 0
    y: int = 0
    tokens: Path | None = None
    image_mpp: float | None = None
    control: Sequence[Path] = ()
    prior: Path | None = None
    classes: Sequence[str] = ()

    def __post_init__(self):
        given = [name for name in ("reference", "slide", "tokens", "prior") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"--{' and --'.join(given)}: one of them conditions; give one")
        check_classes(self.prior, self.classes)
        if len(self.control) > 1:
            raise InputError(f"--control: {len(self.control)} files for one picture: name one, of its size")
        if self.slide is None and (self.x or self.y):
            raise InputError("--x and --y are of a region of --slide; --reference begins at its top left corner")

    @property
    def file(self) -> Path | None:
        """Return the file that conditions; None of an index or a prior."""
        return self.tokens or self.slide or self.reference


def sample_large_pictures(
    session: Session,
    source: LargeSource,
    out: Path,
    size: PictureSize,
    count: int = 1,
    stride: int | None = None,
    batch_size: int | None = None,
    decode_tile: int = 64,
    format: str = "auto",
) -> None:
    """Fill a folder with pictures, in windows whose predictions are blended; write only what is missing.

    stride: latent cells from one window to the next, None: half the network's. batch_size: windows in one pass, None: as
    many as keep the device busy. decode_tile: cells a side that the codec decodes at once. format: png, tiff or auto.
    Raises MissingError, InputError.
    """
    state, config = session.state, session.run.config
    side = config.input_size
    stride = stride or side // 2
    batch_size = batch_size or windows_per_pass(session.device, side)
    make = LargeImageMaker(session.run, session.codec, session.seed, session.solver, stride, batch_size, decode_tile)
    windows = len(make.windows(size.rows, size.columns).corners)
    on = describe_device(session.device, state.num_processes, session.solver.precision)
    state.print(
        f"{session.run.folder}: {size.height} x {size.width} pixels, {windows} windows, {batch_size} at once, on {on}"
    )
    if windows > 1 and stride > side * 3 // 4:
        state.print(
            f"windows of {side} cells, {stride} apart, hardly overlap: seams will show; {side // 2} apart they do not"
        )
    if min(size.height, size.width) < config.image_size:
        state.print(f"smaller than the network's {config.image_size} pixels: the corner of a larger picture")

    folder = OutputFolder(out, size.choose_extension(format))
    with open_region(source, size, state.print) as region:
        condition_of, origin = choose_grids(session, source, region, size)
        todo = folder.list_missing(count, has_real=lambda i: region is not None)
        if state.is_main_process:
            shape = {"height": size.height, "width": size.width, "stride": stride, "mpp": size.mpp}
            details = {"decode_tile": decode_tile, "format": folder.extension, **origin.content}
            folder.check_or_write_settings(
                {"pictures": "large", **session.settings, **shape, **details},
                {**session.locations, **origin.locations},
            )
        state.wait_for_everyone()  # every process has looked before one of them writes
        quiet = not state.is_main_process
        for i in todo[state.process_index :: state.num_processes]:
            condition = condition_of(i)
            with tqdm(total=session.solver.taken_steps, unit="step", desc=condition.name, disable=quiet) as progress:
                latents = make.latents([i], condition.condition, on_step=partial(_advance, progress))
            path = folder.image_path(SYNTHETIC_DIR, i, condition.name)
            note = {**session.image_metadata(i), "stride": stride, "condition": condition.name}
            write_large_image(path, make.bands(latents), size.height, size.width, size.mpp, note)
            if region is not None:
                write_large_image(
                    folder.image_path(REAL_DIR, i, condition.name),
                    region_bands(region, size.rows, size.columns),
                    *(size.height, size.width, size.mpp),
                    {"condition": condition.name},
                )
            print(f"written: {path}")
            if i == todo[0] and batch_size < windows:
                session.print_batch_advice(batch_size)
    state.wait_for_everyone()


def _advance(progress: tqdm, *_: object) -> None:
    progress.update()


def largest_region(slide: Slide, x: int, y: int) -> str:
    """Return what to do about a region that is too large: the largest sides from x, y on, or another corner."""
    width, height = ((side - start) // WINDOW * WINDOW for side, start in ((slide.width, x), (slide.height, y)))
    if min(x, y) < 0 or min(width, height) < WINDOW:
        return f"give --x and --y of a corner that has {WINDOW} pixels and more to the right and below"
    return f"give another --x and --y, or at most --width {width} --height {height}"


@contextmanager
def open_region(source: LargeSource, size: PictureSize, say: Callable[[str], None] = print) -> Iterator[Region | None]:
    """Open the part of a slide or image that conditions, if one does; `say` gets a sentence when it ends before the picture.

    Raises MissingError, or InputError when it is too small.
    """
    path = source.slide or source.reference
    if path is None:
        yield None
        return
    with closing(open_slide(path, size.mpp, source.image_mpp) if source.slide else PlainImage(path)) as slide:
        x, y = round(source.x / slide.factor), round(source.y / slide.factor)
        over = (y + size.height - slide.height, x + size.width - slide.width)
        if min(x, y) < 0 or max(over) >= WINDOW:  # less is filled up with white: sides are multiples, slides are not
            raise InputError(
                f"{path} is {slide.width} pixels wide and {slide.height} high ({slide.note}): from x {x}, y {y} on "
                f"{size.width} x {size.height} reach beyond it; {largest_region(slide, x, y)}"
            )
        if max(over) > 0:
            say(f"{path} ends {max(over)} pixels before the picture: what lies beyond is read as white glass")
        yield Region(slide, x, y)


def choose_grids(
    session: Session, source: LargeSource, region: Region | None, size: PictureSize
) -> tuple[Callable[[int], NamedCondition], Origin]:
    """Return a function that gives the condition of picture i, a grid of tokens with what controls, and what identifies it.

    Raises MissingError, InputError for tokens or a control of another size.
    """
    grid_of, origin = _choose_tokens(session, source, region, size)
    files = list_controls(source.control)
    if not files:
        session.solver.check_control(session.run, is_given=False)
        return grid_of, origin
    check_controlled(session.run)
    control = read_control(files[0], session.run, session.codec, (size.height, size.width))

    def controlled(i: int) -> NamedCondition:
        named = grid_of(i)
        return replace(named, condition=Condition(named.condition.tokens, control))

    return controlled, with_controls(origin, files)


def _choose_tokens(
    session: Session, source: LargeSource, region: Region | None, size: PictureSize
) -> tuple[Callable[[int], NamedCondition], Origin]:
    """Return a function that gives the condition of picture i, a grid of tokens (rows, columns, D), and what identifies it.

    Raises MissingError, InputError for tokens of another shape.
    """
    path = source.file
    if source.prior is not None:
        prior = open_source_prior(session, source.prior, source.classes, of_windows=True)
        return lambda i: draw_condition(prior, i, session.seed, size.rows, size.columns), Origin(
            identify_prior(prior), {}
        )
    if path is None:
        dataset = open_index(session, ConditionSource(), with_control=False)
        return lambda i: neighbourhood(dataset, i, session.seed, size.rows, size.columns), index_origin(dataset)
    origin = identify_files(session, [path], embedded=region is not None)
    if region is not None:
        place = {"x": source.x, "y": source.y, "image_mpp": source.image_mpp}
        name = f"{path.stem}_{source.x}_{source.y}" if source.slide else path.stem
        # when the first is sampled: all that can be refused is refused before a network runs
        embedded = cache(lambda: embed_region(region, size.rows, size.columns, session.embedder))
        return lambda i: NamedCondition(name, Condition(embedded()[None])), Origin({**origin, **place}, {})
    grid, wanted = read_numbers(path, "tokens"), (size.rows, size.columns, session.run.config.caption_channels)
    if tuple(grid.shape) != wanted:
        raise InputError(
            f"{path} holds tokens {tuple(grid.shape)}: expected {wanted}, one for each {WINDOW} pixels a side"
        )
    return lambda i: NamedCondition(path.stem, Condition(grid[None])), Origin(origin, {})
