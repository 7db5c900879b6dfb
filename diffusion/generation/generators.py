"""Images for conditions, of the network's own size and of any size; everything random about an image follows from its number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from diffusion.encoders.latents import LatentCodec, check_pixels, to_uint8
from diffusion.formats import LATENT_FACTOR, WINDOW
from diffusion.generation.conditions import NamedCondition
from diffusion.generation.solver import Solver
from diffusion.panorama import WindowedNetwork, Windows, decode_bands, window_tokens
from diffusion.sampling import OnStep, image_generator, initial_noise
from diffusion.workdir import Run

TOKEN_CELLS = WINDOW // LATENT_FACTOR  # cells of the latents that one token is of, a side


class ImageMaker:
    """Image i of a run at its own size: condition, noise and everything random about it follow from (seed, i) alone."""

    def __init__(self, run: Run, codec: LatentCodec, conditions: Sequence[NamedCondition], seed: int, solver: Solver):
        self.run, self.codec, self.conditions, self.seed, self.solver = run, codec, conditions, seed, solver

    def images(
        self, indices: list[int], noises: list[int] | None = None
    ) -> Iterator[tuple[int, NamedCondition, torch.Tensor]]:
        """One batch: number, condition, and sampled pixels, uint8 (3, S, S). noises: numbers of other images' noise."""
        conditions = [self.conditions[i] for i in indices]
        generators = [image_generator(self.seed, i) for i in noises or indices]
        side = self.run.config.input_size
        noise = initial_noise(generators, (self.run.model.config.in_channels, side, side))
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
        noise = initial_noise([generator], (self.run.model.config.in_channels, windows.height, windows.width))
        network = WindowedNetwork(self.run.model, windows, self.batch_size)
        latents = self.solver.latents(self.run, noise, tokens[None], [generator], network, on_step)
        return latents[:, :, : TOKEN_CELLS * rows, : TOKEN_CELLS * columns]

    def bands(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """The pixels of such latents from the top down, in bands (3, rows, W), uint8."""
        for band in decode_bands(self.codec.decode, latents, self.decode_tile):
            yield to_uint8(check_pixels(band, self.codec))
