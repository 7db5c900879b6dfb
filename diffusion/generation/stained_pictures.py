"""Stained pictures in a folder: images that are one region, several at once, and larger ones and slides region by region."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from diffusion.data.images import read_header
from diffusion.data.slides.parts import locate_part
from diffusion.data.slides.reader import SLIDE_SUFFIXES, Slide, open_slide
from diffusion.data.slides.resolution import shrink_factor
from diffusion.data.slides.tissue import THUMBNAIL_SIDE, SlideMap
from diffusion.formats import WINDOW
from diffusion.generation.image_files import choose_extension, find_picture, read_note, write_large_image
from diffusion.generation.output_folder import check_or_write_record
from diffusion.generation.regions import Region, read_pixels
from diffusion.generation.staining import Stainer, StainPlace, StainSettings
from diffusion.panorama import Windows, blend_bands
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write
from diffusion.utils.locks import file_lock
from diffusion.utils.recorded import describe_difference
from diffusion.utils.seeds import mix_seed, seed_of_text

if TYPE_CHECKING:
    from accelerate import PartialState

RECORD = "stain.json"  # of the settings that all pictures of a folder share
LOCK = ".stain.lock"  # while a command writes there
MIN_TISSUE = 0.01  # share of a region below which it is glass, and stays as it is


@dataclass(frozen=True)
class StainJob:
    """One picture to stain, a slide or an image, read at `mpp` microns per pixel.

    name: of its file in the folder of results, without ending, of which its noise follows, too: pictures of one folder differ.
    image_mpp: microns per pixel of the file, whatever it says itself. part: left and top of a part in pixels of the finest level, its
    width and height in pixels of the result; None: all of it. format: png, tiff or auto.
    """

    path: Path
    name: str
    mpp: float
    image_mpp: float | None = None
    part: tuple[int, int, int, int] | None = None
    format: str = "auto"


class UnreadableError(InputError):
    """A picture that cannot be opened, or has no such part: the others go on."""


class ReadableSlide:
    """A slide whose faults are those of one picture, UnreadableError, while others are of all."""

    def __init__(self, slide: Slide):
        self._slide = slide
        self.width, self.height, self.factor = slide.width, slide.height, slide.factor
        self.note, self.mpp_given = slide.note, slide.mpp_given

    def thumbnail(self, side: int) -> Image.Image:
        """Return the slide in RGB, as the slide does."""
        return self._slide.thumbnail(side)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def read(self, x: float, y: float, size: int) -> Image.Image:
        """Read a square as the slide does. Raises UnreadableError."""
        try:
            return self._slide.read(x, y, size)
        except InputError as error:
            raise UnreadableError(str(error)) from None


@dataclass(frozen=True)
class Picture:
    """A part of an opened slide or image, in pixels as it is read, and where on it there is tissue."""

    slide: Slide
    left: int
    top: int
    width: int
    height: int
    tissue: SlideMap

    def region(self, row: int, column: int) -> Region:
        """Return the region whose first window is in this row and column."""
        return Region(self.slide, self.left + WINDOW * column, self.top + WINDOW * row)

    def is_glass(self, region: Region, windows: int) -> bool:
        """Tell whether a region of so many windows a side has no tissue to speak of."""
        return self.tissue.measure_square(region.x, region.y, WINDOW * windows).tissue < MIN_TISSUE


@contextmanager
def open_picture(job: StainJob) -> Iterator[Picture]:
    """Open what a job is of. Raises UnreadableError."""
    try:
        slide = open_slide(job.path, job.mpp, job.image_mpp)
    except InputError as error:
        raise UnreadableError(str(error)) from None
    try:
        thumbnail = slide.thumbnail(THUMBNAIL_SIDE)
    except InputError as error:
        slide.close()
        raise UnreadableError(str(error)) from None
    try:
        try:
            left, top, width, height = locate_part(slide, job.path, job.part)
        except InputError as error:
            raise UnreadableError(str(error)) from None
        tissue = SlideMap.from_thumbnail(thumbnail, slide.width, slide.height)
        yield Picture(ReadableSlide(slide), left, top, width, height, tissue)
    finally:
        slide.close()


def stain_pictures(stainer: Stainer, jobs: Sequence[StainJob], out: Path) -> dict[Path, str]:
    """Stain pictures into a folder; those that are there stay, and one that was begun goes on with its next region.

    Several processes share the images that are one region each, and after these the regions of every other picture.
    Returns the files that could not be stained, with the reasons. Raises InputError for a folder of pictures that were made
    otherwise, or that another command writes to.
    """
    from accelerate.utils import gather_object

    state = stainer.session.state
    with file_lock(out / LOCK) if state.is_main_process else nullcontext():
        if state.is_main_process:
            check_or_write_record(out / RECORD, stainer.record, "stained pictures")
        state.wait_for_everyone()
        missing = [job for job in jobs if not is_done(job, out, state)]
        state.print(f"{len(jobs) - len(missing)} of {len(jobs)} pictures are there; staining {len(missing)}")
        state.wait_for_everyone()  # every process has looked before one of them writes
        sides = {job: single_side(job, stainer.settings) for job in missing}
        singles = stain_singles(stainer, {job: side for job, side in sides.items() if side is not None}, out)
        failed = {path: reason for each in gather_object([singles]) for path, reason in each.items()}
        for job in (job for job, side in sides.items() if side is None):
            try:
                target = stain_picture(stainer, job, out)
            except UnreadableError as error:
                failed[job.path] = str(error)
                continue
            state.print(f"written: {target}")
    return failed


def is_done(job: StainJob, out: Path, state: PartialState) -> bool:
    """Tell whether a picture is in a folder of results; what a command that was killed then has left of its regions is removed.

    Raises InputError for one that was made of another file or at another resolution, and for a file that was not stained.
    """
    target = find_picture(out, job.name, job.format)
    if target is None:
        return False
    before = read_note(target).get("of")
    if not isinstance(before, dict):
        raise InputError(f"{target} is in the way: it was not stained here; name another folder with --out, or move it")
    if differs := describe_difference(before, identify(job)):
        was, now = differs
        raise InputError(
            f"{target} was stained of a file with {was}, not {now}; name another folder with --out, or delete it"
        )
    if state.is_main_process:
        shutil.rmtree(regions_folder(target), ignore_errors=True)
    return True


def identify(job: StainJob) -> dict[str, Any]:
    """Return what tells what a job is of from other files and parts of the same name."""
    size = job.path.stat().st_size if job.path.is_file() else None
    record = {"bytes": size, "mpp": job.mpp, "image_mpp": job.image_mpp, "part": job.part}
    return json.loads(json.dumps(record))


def single_side(job: StainJob, settings: StainSettings) -> int | None:
    """Return the side, in windows, of the one region that an image is; None for a larger image, a slide and a part of one."""
    if job.part is not None or job.path.suffix.lower() in SLIDE_SUFFIXES:
        return None
    try:
        header = read_header(job.path)
        factor = 1.0 if job.image_mpp is None else shrink_factor(job.path, job.image_mpp, job.mpp)
    except InputError:
        return 1  # what is wrong is said when it is opened
    # an image that is turned, as its EXIF says, has the sides of this one
    height, width = (max(1, int(side / factor)) for side in (header.height, header.width))
    regions = choose_regions(-(-height // WINDOW), -(-width // WINDOW), settings)
    return regions.side if len(regions.corners) == 1 else None


def stain_singles(stainer: Stainer, sides: Mapping[StainJob, int], out: Path) -> dict[Path, str]:
    """Stain this process's share of images that are one region each, of `sides` windows a side; return those that failed."""
    state, batches = stainer.session.state, []
    for side in sorted(set(sides.values())):
        alike = [job for job, own in sides.items() if own == side]
        at_once = max(1, stainer.settings.batch_size // len(stainer.make.windows(side, side).corners))
        batches += [(side, alike[first : first + at_once]) for first in range(0, len(alike), at_once)]
    mine, failed = batches[state.process_index :: state.num_processes], {}
    total = sum(len(batch) for _, batch in mine)
    with tqdm(total=total, unit="image", disable=not (total and state.is_main_process)) as progress:
        for side, batch in mine:
            failed |= stain_batch(stainer, batch, side, out)
            progress.update(len(batch))
    return failed


def stain_batch(stainer: Stainer, jobs: Sequence[StainJob], side: int, out: Path) -> dict[Path, str]:
    """Stain images that are one region of `side` windows, sampled together; return those that cannot be opened."""
    failed, pictures = {}, {}
    with ExitStack() as stack:
        for job in jobs:
            try:
                pictures[job] = stack.enter_context(open_picture(job))
            except UnreadableError as error:
                failed[job.path] = str(error)
        regions = {job: picture.region(0, 0) for job, picture in pictures.items()}
        places = {
            job: StainPlace(region, (0, 0), picture_seed(stainer, job))
            for job, region in regions.items()
            if not pictures[job].is_glass(region, side)
        }
        stained = dict(zip(places, stainer.stain(list(places.values()), side, side), strict=True)) if places else {}
        for job, picture in pictures.items():
            pixels = stained.get(job)
            if pixels is None:
                pixels = torch.from_numpy(read_pixels(regions[job], side, side)).permute(2, 0, 1)
            write_stained(stainer, job, picture, out, [pixels[:, : picture.height, : picture.width]])
    if glass := len(pictures) - len(stained):
        print(f"{glass} images are glass, and stay as they are")
    return failed


def stain_picture(stainer: Stainer, job: StainJob, out: Path) -> Path:
    """Stain one picture: its regions into a folder beside it, then the whole of them, blended where they overlap; return its file.

    Raises UnreadableError, in all processes when one of them cannot read it.
    """
    state, settings = stainer.session.state, stainer.settings
    with ExitStack() as stack:
        picture = open_together(job, stack)
        folder = regions_folder(target_path(job, picture, out))
        tiles = choose_regions(-(-picture.height // WINDOW), -(-picture.width // WINDOW), settings)
        if state.is_main_process:
            identity = {
                "bytes": job.path.stat().st_size,
                "corner": [picture.left, picture.top],
                "size": [picture.width, picture.height],
                "mpp": job.mpp,
            }
            check_or_write_record(folder / RECORD, {**identity, "image_mpp": job.image_mpp}, "stained pictures")
        seed, side = picture_seed(stainer, job), tiles.side
        state.wait_for_everyone()
        todo = [(n, corner) for n, corner in enumerate(tiles.corners) if not part_path(folder, n).is_file()]
        state.wait_for_everyone()  # every process has looked before one of them writes
        glass, mine, fault = 0, todo[state.process_index :: state.num_processes], None
        try:
            for number, corner in tqdm(mine, unit="region", desc=job.name, disable=not state.is_main_process):
                region = picture.region(*corner)
                if picture.is_glass(region, side):
                    pixels, glass = read_pixels(region, side, side), glass + 1
                else:
                    (stained,) = stainer.stain([StainPlace(region, corner, seed)], side, side)
                    pixels = stained.permute(1, 2, 0).numpy()
                with atomic_write(part_path(folder, number)) as temporary:
                    Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
        except UnreadableError as error:
            fault = str(error)
        raise_together(fault)
        if glass:
            print(f"{job.path}: {glass} of {len(tiles.corners)} regions are glass, and stay as they are")
        if state.is_main_process:
            scaled = Windows(*(WINDOW * each for each in (tiles.height, tiles.width, side, tiles.stride)))
            parts = blend_bands(lambda row, column: read_part(folder, row * len(tiles.columns) + column), scaled)
            write_stained(stainer, job, picture, out, crop_bands(parts, picture.height, picture.width))
            shutil.rmtree(folder)
        target = target_path(job, picture, out)
    state.wait_for_everyone()
    return target


def open_together(job: StainJob, stack: ExitStack) -> Picture:
    """Open a picture in all processes, until the stack ends. Raises UnreadableError in all of them when one cannot."""
    picture, fault = None, None
    try:
        picture = stack.enter_context(open_picture(job))
    except UnreadableError as error:
        fault = str(error)
    raise_together(fault)
    assert picture is not None
    return picture


def raise_together(fault: str | None) -> None:
    """Wait for all processes, and raise UnreadableError in each of them for the first fault of any; None: there is none here."""
    from accelerate.utils import gather_object

    faults = [each for each in gather_object([fault]) if each is not None]
    if faults:
        raise UnreadableError(faults[0])


def picture_seed(stainer: Stainer, job: StainJob) -> int:
    """Return the seed of a picture's noise."""
    return mix_seed(stainer.session.seed, seed_of_text(job.name))


def target_path(job: StainJob, picture: Picture, out: Path) -> Path:
    """Return the file of a stained picture."""
    return out / f"{job.name}.{choose_extension(picture.height, picture.width, job.format)}"


def write_stained(stainer: Stainer, job: StainJob, picture: Picture, out: Path, bands: Iterable[torch.Tensor]) -> None:
    """Write a stained picture, of bands (3, rows, width), uint8, from the top down."""
    note = {**stainer.record, "source": job.path.name, "of": identify(job)}
    write_large_image(target_path(job, picture, out), bands, picture.height, picture.width, job.mpp, note)


def regions_folder(target: Path) -> Path:
    """Return the folder of the regions of a picture that are done, until the picture is."""
    return target.with_name(f".{target.name}.regions")


def choose_regions(rows: int, columns: int, settings: StainSettings) -> Windows:
    """Return the regions of a picture of so many windows; one that has few in a direction is filled up with white there."""
    overlap = settings.overlap // WINDOW
    side = min(settings.region // WINDOW, max(min(rows, columns), 2 * overlap), max(rows, columns))
    height, width = max(rows, side), max(columns, side)
    return Windows(height, width, side, side if (height, width) == (side, side) else side - overlap)


def part_path(folder: Path, number: int) -> Path:
    """Return the file of a region that is done."""
    return folder / f"{number}.png"


def read_part(folder: Path, number: int) -> torch.Tensor:
    """Read a region that is done, float32 (3, S, S)."""
    with Image.open(part_path(folder, number)) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def crop_bands(bands: Iterator[torch.Tensor], height: int, width: int) -> Iterator[torch.Tensor]:
    """Yield bands as uint8, without what lies beyond the picture's ends."""
    left = height
    for band in bands:
        part = band[:, :left, :width].round().clamp(0, 255).to(torch.uint8)
        left -= part.shape[1]
        if part.shape[1]:
            yield part
