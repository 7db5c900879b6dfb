"""Pictures for conditions: which is which, how they are sampled, and what lies in the folder already."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion.encoders.latents import LatentCodec, check_pixels, to_uint8
from diffusion.formats import DEFAULT_SOLVER, LATENT_FACTOR, REAL_DIR, SAMPLES_FILE, SYNTHETIC_DIR, WINDOW
from diffusion.generation.conditions import Condition
from diffusion.generation.image_files import save_image
from diffusion.guidance import Network
from diffusion.panorama import WindowedNetwork, Windows, decode_bands, window_tokens
from diffusion.sampling import (
    OnStep,
    guided_levels,
    image_generator,
    initial_noise,
    make_scheduler,
    sample_latents,
)
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.folders import is_hidden
from diffusion.utils.hardware import torch_dtype
from diffusion.utils.text import printable, read_json
from diffusion.workdir import Run

BY_CONTENT = frozenset(("weights", "vae_weights", "data"))  # settings that are fingerprints
FORMATS = {"png": {"compress_level": 3}, "jpeg": {}}
TOKEN_CELLS = WINDOW // LATENT_FACTOR  # cells of the latents that one token is of, a side


@dataclass(frozen=True)
class Solver:
    """How to sample; precision: of the network, fp32, bf16 or fp16.

    Raises InputError for steps that the algorithm cannot take, and an interval that is none.
    """

    steps: int = 20
    guidance: float = 2.0
    algorithm: str = DEFAULT_SOLVER
    guidance_interval: tuple[float, float] | None = None
    precision: str = "fp32"

    def __post_init__(self):
        make_scheduler(self.algorithm, self.steps)
        guided_levels(self.guidance_interval)

    def latents(
        self,
        run: Run,
        noise: torch.Tensor,
        tokens: torch.Tensor,
        generators: Sequence[torch.Generator],
        network: Network | None = None,
        on_step: OnStep | None = None,
    ) -> torch.Tensor:
        """Network latents of the noise's shape (B, C, H, W); network: what predicts, where it is not the run's own model.

        Raises InputError when they are not finite.
        """
        device, dtype = run.null_tokens.device, torch_dtype(self.precision)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            latents = sample_latents(
                network or run.model,
                noise.to(device),
                tokens.to(device),
                run.null_tokens,
                steps=self.steps,
                guidance=self.guidance,
                algorithm=self.algorithm,
                generators=generators,
                prediction_type=run.config.prediction_type,
                guidance_interval=self.guidance_interval,
                on_step=on_step,
            )
        if not torch.isfinite(latents).all():
            raise InputError(
                f"latents are not finite: {run.checkpoint} is spoilt, or guidance {self.guidance} too strong"
            )
        return latents


@dataclass(frozen=True)
class Folder:
    """An output folder: `syn/` and, where there is tissue to compare with, `real/` with the same file names.

    tissue: another folder for the latter, which several may share.
    """

    path: Path
    extension: str
    tissue: Path | None = None

    def claim(self, settings: dict[str, Any], places: dict[str, Any]) -> None:
        """Write the settings, or compare with those that samples were made with, so that one folder never mixes two.

        settings: what tells samples from others, by content; places: where weights and data lie, which may move.
        Raises InputError naming the first setting that differs.
        """
        settings, places = json.loads(json.dumps(settings)), json.loads(json.dumps(places))
        file, samples = self.path / SAMPLES_FILE, self.path / SYNTHETIC_DIR
        if file.is_file() and samples.is_dir() and any(name[0] != "." for name in os.listdir(samples)):
            advice = "name another folder for the output, or delete it with the samples beside it"
            before = read_json(file, "record of samples", advice)
            if not before.keys() & BY_CONTENT:  # of a version that went by places alone
                settings = {name: value for name, value in settings.items() if name not in BY_CONTENT} | places
            else:
                before = {name: value for name, value in before.items() if name not in places}
            for name in {**settings, **before}:
                if before.get(name) != settings.get(name):
                    raise InputError(
                        f"{self.path} holds samples with {name} {before.get(name)}, not {settings.get(name)}; "
                        "name another folder for the output"
                    )
            return
        atomic_write_bytes(file, (json.dumps({**settings, **places}, indent=2) + "\n").encode())

    def missing(self, count: int, has_real: Callable[[int], bool] = lambda i: False) -> list[int]:
        """List which of `count` images are not there yet, in `syn` and, where they have tissue, `real`.

        A file is there whole or not at all. Raises InputError when there are more than `count`, or files that are no samples.
        """
        folder = self.path / SYNTHETIC_DIR
        names = [name for name in os.listdir(folder) if not is_hidden(name)] if folder.is_dir() else []
        strangers = [name for name in names if not re.match(r"\d{6,}_", name)]
        if strangers:
            raise InputError(
                f"{folder} holds {printable(strangers[0])}, which is no sample; name another folder for the output"
            )
        present = {int(name.split("_")[0]): name for name in names}
        if any(i >= count for i in present):
            raise InputError(
                f"{self.path} holds {len(present)} samples, not {count}; name another folder for the output, or ask for as many"
            )
        complete = {i for i, name in present.items() if (self.real / name).is_file() or not has_real(i)}
        return [i for i in range(count) if i not in complete]

    def file(self, part: str, i: int, name: str) -> Path:
        """The file of image i, in `real` or `syn`."""
        folder = self.real if part == REAL_DIR else self.path / part
        return folder / f"{i:06d}_{name}.{self.extension}"

    @property
    def real(self) -> Path:
        return self.tissue or self.path / REAL_DIR

    def write(self, i: int, condition: Condition, synthetic: torch.Tensor, note: dict[str, Any]) -> None:
        """Image i, uint8 (3, S, S), with a note of how it was made, and the condition's own pixels if it has some."""
        pictures = [(SYNTHETIC_DIR, synthetic, {**note, "condition": condition.name})]
        if condition.pixels is not None:
            # after the sample: while there is none, a folder takes other settings, and must hold nothing of these
            pictures.append((REAL_DIR, condition.pixels, {"condition": condition.name}))
        for part, pixels, about in pictures:
            save_image(self.file(part, i, condition.name), pixels, about, **FORMATS[self.extension])


class ImageMaker:
    """Image i of a run at its own size: condition, noise and everything random about it follow from (seed, i) alone."""

    def __init__(self, run: Run, codec: LatentCodec, conditions: Sequence[Condition], seed: int, solver: Solver):
        self.run, self.codec, self.conditions, self.seed, self.solver = run, codec, conditions, seed, solver

    def images(
        self, indices: list[int], noises: list[int] | None = None
    ) -> Iterator[tuple[int, Condition, torch.Tensor]]:
        """One batch: number, condition, and sampled pixels, uint8 (3, S, S). noises: numbers of other images' noise."""
        conditions = [self.conditions[i] for i in indices]
        generators = [image_generator(self.seed, i) for i in noises or indices]
        side = self.run.config.input_size
        noise = initial_noise(generators, (self.run.model.in_channels, side, side))
        tokens = torch.stack([condition.tokens for condition in conditions])
        latents = self.solver.latents(self.run, noise, tokens, generators)
        for i, condition, latent in zip(indices, conditions, latents, strict=True):
            yield i, condition, to_uint8(check_pixels(self.codec.decode(latent[None])[0], self.codec))


class LargeImageMaker:
    """Image i of any size, from overlapping windows of the run's own size."""

    def __init__(
        self, run: Run, codec: LatentCodec, seed: int, solver: Solver, stride: int, batch_size: int, decode_tile: int
    ):
        """stride: cells of the latents from one window to the next; batch_size: windows in one pass of the network;
        decode_tile: cells a side that the codec decodes at once."""
        self.run, self.codec, self.seed, self.solver = run, codec, seed, solver
        self.stride, self.batch_size, self.decode_tile = stride, batch_size, decode_tile

    def windows(self, rows: int, columns: int) -> Windows:
        """Those of a picture of rows x columns tokens, which has room for one at least. Raises InputError for gaps."""
        side = self.run.config.input_size
        height, width = (max(side, TOKEN_CELLS * count) for count in (rows, columns))
        return Windows(height, width, side, self.stride)

    def latents(self, i: int, grid: torch.Tensor, on_step: OnStep | None = None) -> torch.Tensor:
        """Network latents (1, C, 32 * rows, 32 * columns) for a grid of tokens (rows, columns, D)."""
        rows, columns = grid.shape[:2]
        windows = self.windows(rows, columns)
        for axis, cells in ((0, windows.height), (1, windows.width)):  # a small picture is the corner of a window
            lacking = cells // TOKEN_CELLS - grid.shape[axis]
            grid = torch.cat([grid, grid.narrow(axis, grid.shape[axis] - 1, 1).repeat_interleave(lacking, axis)], axis)
        tokens = window_tokens(grid, windows, self.run.config.input_size // TOKEN_CELLS)
        generator = image_generator(self.seed, i)
        noise = initial_noise([generator], (self.run.model.in_channels, windows.height, windows.width))
        network = WindowedNetwork(self.run.model, windows, self.batch_size)
        latents = self.solver.latents(self.run, noise, tokens[None], [generator], network, on_step)
        return latents[:, :, : TOKEN_CELLS * rows, : TOKEN_CELLS * columns]

    def bands(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """The pixels of such latents from the top down, in bands (3, rows, W), uint8."""
        for band in decode_bands(self.codec.decode, latents, self.decode_tile):
            yield to_uint8(check_pixels(band, self.codec))
