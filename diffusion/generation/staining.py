"""Virtual staining: H&E -> embeddings -> a flow to another stain's -> samples, region by region, of images and whole slides.

Letters: H W sides in pixels, R x K windows of 256 pixels of a region, D width of an embedding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from diffusion.condition import Condition
from diffusion.data.slides.reader import Slide, open_slide
from diffusion.data.slides.tissue import THUMBNAIL_SIDE, SlideMap
from diffusion.formats import WINDOW
from diffusion.generation.controls import encode_picture
from diffusion.generation.generators import TOKEN_CELLS, LargeImageMaker
from diffusion.generation.image_files import choose_extension, write_large_image
from diffusion.generation.regions import Region, embed_region, region_bands
from diffusion.generation.session import Session
from diffusion.model.flow import EmbeddingFlow, Method
from diffusion.panorama import Windows, blend_bands
from diffusion.sampling import image_generator
from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write, atomic_write_bytes
from diffusion.utils.locks import file_lock
from diffusion.utils.recorded import describe_difference
from diffusion.utils.seeds import mix_seed, seed_of_text
from diffusion.utils.text import read_json

Structure = Literal["none", "sdedit", "control"]
RECORD = "stain.json"  # of the settings that all pictures of a folder share
LOCK = ".stain.lock"  # while a command writes there
MIN_TISSUE = 0.01  # share of a region below which it is glass, and stays as it is


@dataclass(frozen=True)
class StainSettings:
    """How pictures are stained.

    structure: what keeps the tissue's structure: none, embeddings alone; sdedit, the source's latents with noise on them by the
    solver's `start_strength`; control, a ControlNet that reads them. flow_steps, flow_method: of the flow. region, overlap: pixels a side
    that are sampled together, and that neighbouring regions share; both multiples of 256. stride: latent cells between windows of the
    network; None: half of them. Raises InputError.
    """

    structure: Structure = "none"
    flow_steps: int = 100
    flow_method: Method = "euler"
    region: int = 2048
    overlap: int = 256
    stride: int | None = None
    batch_size: int = 1
    decode_tile: int = 64

    def __post_init__(self):
        for name in ("region", "overlap"):
            value = getattr(self, name)
            if value < WINDOW or value % WINDOW:
                raise InputError(f"--{name} {value}: expected a multiple of {WINDOW}")
        if self.overlap > self.region // 2:
            raise InputError(f"--overlap {self.overlap}: expected at most half of --region {self.region}")


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

    def find_result(self, out: Path) -> Path | None:
        """Return the picture in a folder of results, if it is there."""
        endings = ("png", "tiff") if self.format == "auto" else (self.format,)
        paths = (out / f"{self.name}.{ending}" for ending in endings)
        return next((path for path in paths if path.is_file()), None)


def regions_folder(target: Path) -> Path:
    """Return the folder of the regions of a picture that are done, until the picture is."""
    return target.with_name(f".{target.name}.regions")


class Stainer:
    """Stains pictures with a session's network, and a flow between the embeddings of the stains; None: embeddings as they are."""

    def __init__(self, session: Session, flow: EmbeddingFlow | None, settings: StainSettings):
        run = session.run
        if flow is not None:
            if flow.config.from_noise:
                raise InputError(
                    "--flow: a prior, which begins at noise: expected a flow between the embeddings of two stains"
                )
            if flow.config.width != run.config.caption_channels:
                raise InputError(
                    f"--flow: of embeddings of {flow.config.width} values, and the network takes {run.config.caption_channels}"
                )
        if settings.structure == "control" and (run.controlnet is None or run.controlnet.config.maps):
            raise InputError(
                "--structure control: expected a ControlNet of the other stain's latents (data.control_dataset); name it with --controlnet"
            )
        if settings.structure != "control" and run.controlnet is not None:
            raise InputError(
                f"--structure {settings.structure}: a ControlNet is given, which reads the picture with control"
            )
        self.session, self.flow, self.settings = session, flow, settings
        stride = settings.stride or run.config.input_size // 2
        self.make = LargeImageMaker(
            run, session.codec, session.seed, session.solver, stride, settings.batch_size, settings.decode_tile
        )

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return what identifies how pictures are stained."""
        settings = self.settings
        return {
            **self.session.settings,
            "encoder": [self.session.embedder.name, self.session.embedder.fingerprint],
            "flow": None if self.flow is None else fingerprint_tensors(self.flow.state_dict()),
            "flow_steps": settings.flow_steps,
            "flow_method": settings.flow_method,
            "structure": settings.structure,
            **({"strength": self.session.solver.start_strength} if settings.structure == "sdedit" else {}),
            "region": settings.region,
            "overlap": settings.overlap,
            "stride": self.make.stride,
            "decode_tile": settings.decode_tile,
        }

    def embed(self, region: Region, rows: int, columns: int) -> torch.Tensor:
        """Return the embeddings (1, R, K, D) of the other stain that a region's own are translated to."""
        tokens = embed_region(region, rows, columns, self.session.embedder)
        if self.flow is None:
            return tokens[None]
        translated = self.flow.translate(
            tokens.flatten(0, 1).to(self.flow.device), self.settings.flow_steps, self.settings.flow_method
        )
        return translated.cpu().unflatten(0, (rows, columns))[None]

    def stain(self, region: Region, rows: int, columns: int, corner: tuple[int, int], seed: int) -> torch.Tensor:
        """Return the stained pixels, uint8 (3, 256 R, 256 K), of a region.

        corner: row and column, in windows, of the region in its picture, whose noise has a seed.
        """
        settings = self.settings
        tokens = self.embed(region, rows, columns)
        latents = None
        if settings.structure != "none":
            latents = encode_picture(read_pixels(region, rows, columns), self.session.codec, self.session.device)
        condition = Condition(tokens, latents if settings.structure == "control" else None)
        noise = region_noise(seed, corner, (rows, columns), self.make.run.model.config.in_channels)
        start = latents if settings.structure == "sdedit" else None
        sampled = self.make.latents(mix_seed(seed, *corner), condition, noise=noise, start=start)
        return torch.cat(list(self.make.bands(sampled)), dim=1)


def region_noise(seed: int, corner: tuple[int, int], size: tuple[int, int], channels: int) -> torch.Tensor:
    """Return noise (1, C, 32 R, 32 K) of a region of windows: that of each window follows from its place on the slide alone.

    Regions that overlap so have the same noise where they do. corner, size: rows and columns of windows.
    """
    rows = []
    for row in range(corner[0], corner[0] + size[0]):
        blocks = [
            torch.randn(channels, TOKEN_CELLS, TOKEN_CELLS, generator=image_generator(mix_seed(seed, row), column))
            for column in range(corner[1], corner[1] + size[1])
        ]
        rows.append(torch.cat(blocks, dim=2))
    return torch.cat(rows, dim=1)[None]


def read_pixels(region: Region, rows: int, columns: int) -> np.ndarray:
    """Read the pixels of a region, uint8 (256 R, 256 K, 3)."""
    return torch.cat(list(region_bands(region, rows, columns)), dim=1).permute(1, 2, 0).numpy()


def stain_pictures(stainer: Stainer, jobs: Sequence[StainJob], out: Path) -> dict[Path, str]:
    """Stain pictures into a folder; those that are there stay, and one that was begun goes on with its next region.

    Under several processes they share the regions of each picture. Returns the files that could not be stained, with the reasons.
    Raises InputError for a folder of pictures that were made otherwise, or that another command writes to.
    """
    state = stainer.session.state
    failed: dict[Path, str] = {}
    with file_lock(out / LOCK) if state.is_main_process else nullcontext():
        if state.is_main_process:
            check_or_write_record(out, stainer.record)
        state.wait_for_everyone()
        for job in jobs:
            target = job.find_result(out)
            if target is not None:
                state.print(f"{target} is there")
                if state.is_main_process:  # of a command that was killed between these two
                    shutil.rmtree(regions_folder(target), ignore_errors=True)
                continue
            try:
                target = stain_picture(stainer, job, out)
            except UnreadableError as error:
                failed[job.path] = str(error)
                continue
            state.print(f"written: {target}")
    return failed


class UnreadableError(InputError):
    """A picture that cannot be opened, or has no such part: the others go on."""


class Picture(NamedTuple):
    """A part of an opened slide or image, in pixels as it is read."""

    slide: Slide
    left: int
    top: int
    width: int
    height: int


def open_picture(job: StainJob) -> Picture:
    """Open what a job is of. Raises UnreadableError."""
    try:
        slide = open_slide(job.path, job.mpp, job.image_mpp)
    except InputError as error:
        raise UnreadableError(str(error)) from None
    x, y, width, height = job.part or (0, 0, slide.width, slide.height)
    left, top = (round(each / slide.factor) for each in (x, y))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > slide.width or top + height > slide.height:
        slide.close()
        raise UnreadableError(
            f"{job.path} has {slide.width} x {slide.height} pixels ({slide.note}): {width} x {height} from {left}, {top} on are not "
            "a part of it"
        )
    return Picture(slide, left, top, width, height)


def stain_picture(stainer: Stainer, job: StainJob, out: Path) -> Path:
    """Stain one picture: its regions into a folder beside it, then the whole of them, blended where they overlap; return its file.

    Raises UnreadableError.
    """
    state, settings = stainer.session.state, stainer.settings
    slide, left, top, width, height = open_picture(job)
    target = out / f"{job.name}.{choose_extension(height, width, job.format)}"
    folder = regions_folder(target)
    with closing(slide):
        tiles = choose_regions(-(-height // WINDOW), -(-width // WINDOW), settings)
        if state.is_main_process:
            identity = {
                "bytes": job.path.stat().st_size,
                "corner": [left, top],
                "size": [width, height],
                "mpp": job.mpp,
            }
            check_or_write_record(folder, {**identity, "image_mpp": job.image_mpp})
        seed = mix_seed(stainer.session.seed, seed_of_text(job.name))
        tissue, side = SlideMap.from_thumbnail(slide.thumbnail(THUMBNAIL_SIDE), slide.width, slide.height), tiles.side
        state.wait_for_everyone()
        todo = [(n, corner) for n, corner in enumerate(tiles.corners) if not part_path(folder, n).is_file()]
        state.wait_for_everyone()  # every process has looked before one of them writes
        glass, mine = 0, todo[state.process_index :: state.num_processes]
        for number, (row, column) in tqdm(mine, unit="region", desc=job.name, disable=not state.is_main_process):
            x, y = left + WINDOW * column, top + WINDOW * row
            if tissue.measure_square(x, y, WINDOW * side).tissue < MIN_TISSUE:
                pixels, glass = read_pixels(Region(slide, x, y), side, side), glass + 1
            else:
                stained = stainer.stain(Region(slide, x, y), side, side, (row, column), seed)
                pixels = stained.permute(1, 2, 0).numpy()
            with atomic_write(part_path(folder, number)) as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG", compress_level=1)
        if glass:
            print(f"{job.path}: {glass} of {len(tiles.corners)} regions are glass, and stay as they are")
        state.wait_for_everyone()
        if state.is_main_process:
            scaled = Windows(*(WINDOW * each for each in (tiles.height, tiles.width, side, tiles.stride)))
            note = {**stainer.record, "source": job.path.name}
            parts = blend_bands(lambda row, column: read_part(folder, row * len(tiles.columns) + column), scaled)
            write_large_image(target, crop_bands(parts, height, width), height, width, job.mpp, note)
            shutil.rmtree(folder)
    state.wait_for_everyone()
    return target


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


def check_or_write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write how pictures are made into a folder, or compare it with what is there. Raises InputError naming what differs."""
    file, record = folder / RECORD, json.loads(json.dumps(record))
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, (json.dumps(record, indent=2) + "\n").encode())
        return
    before = read_json(file, "record of stained pictures", "delete it with the pictures beside it")
    if differs := describe_difference(before, record):
        was, now = differs
        raise InputError(
            f"{folder} holds pictures with {was}, not {now}; name another folder for the output with --out"
        )
