"""Images for conditions, of the network's own size and of any size; everything random about an image follows from its number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from diffusion.condition import Condition
from diffusion.encoders.latents import LatentCodec, check_pixels, to_uint8
from diffusion.formats import LATENT_FACTOR, WINDOW
from diffusion.generation.conditions import Conditions, NamedCondition
from diffusion.generation.solver import Solver
from diffusion.inpainting import KnownLatents
from diffusion.panorama import WindowedNetwork, Windows, decode_bands, window_tokens
from diffusion.sampling import OnStep, image_generator, initial_noise
from diffusion.workdir import Run

TOKEN_CELLS = WINDOW // LATENT_FACTOR  # latent cells, along each axis, that one token describes


class ImageMaker:
    """Samples images of a run's own size. Condition, noise and everything random of image i follow from (seed, i) alone."""

    def __init__(self, run: Run, codec: LatentCodec, conditions: Conditions, seed: int, solver: Solver):
        self.run, self.codec, self.conditions, self.seed, self.solver = run, codec, conditions, seed, solver

    def images(
        self, indices: list[int], noises: list[int] | None = None
    ) -> Iterator[tuple[int, NamedCondition, torch.Tensor]]:
        """Sample a batch; yield number, condition, and pixels, uint8 (3, S, S), of each image.

        noises: numbers of the images whose noise is used instead of their own. Raises InputError for latents or pixels
        that are not finite.
        """
        conditions = [self.conditions[i] for i in indices]
        generators = [image_generator(self.seed, i) for i in noises or indices]
        side = self.run.config.input_size
        noise = initial_noise(generators, (self.run.model.config.in_channels, side, side))
        batch = Condition.cat([named.condition for named in conditions])
        latents = self.solver.latents(self.run, noise, batch, generators)
        for i, condition, latent in zip(indices, conditions, latents, strict=True):
            yield i, condition, to_uint8(check_pixels(self.codec.decode(latent[None])[0], self.codec))


class LargeImageMaker:
    """Samples images of any size, in overlapping windows of the run's own size."""

    def __init__(
        self, run: Run, codec: LatentCodec, seed: int, solver: Solver, stride: int, batch_size: int, decode_tile: int
    ):
        """stride: cells of the latents from one window to the next; batch_size: windows in one pass of the network;
        decode_tile: cells a side that the codec decodes at once."""
        self.run, self.codec, self.seed, self.solver = run, codec, seed, solver
        self.stride, self.batch_size, self.decode_tile = stride, batch_size, decode_tile

    def windows(self, rows: int, columns: int) -> Windows:
        """Return the windows of an image of rows x columns tokens, one at least. Raises InputError for gaps between them."""
        side = self.run.config.input_size
        height, width = (max(side, TOKEN_CELLS * count) for count in (rows, columns))
        return Windows(height, width, side, self.stride)

    def latents(
        self,
        numbers: Sequence[int],
        condition: Condition,
        on_step: OnStep | None = None,
        noise: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        known: KnownLatents | None = None,
    ) -> torch.Tensor:
        """Return network latents (B, C, 32 * R, 32 * K) of images, by their numbers, for grids of tokens (B, R, K, D).

        A control, noise other than that of these numbers, latents to start from, and those that are kept have the shape of these latents.
        """
        rows, columns = condition.tokens.shape[1:3]
        windows = self.windows(rows, columns)
        parts = window_tokens(fill_window(condition, windows), windows, self.run.config.input_size // TOKEN_CELLS)
        generators = [image_generator(self.seed, number) for number in numbers]
        if noise is None:
            noise = initial_noise(generators, (self.run.model.config.in_channels, windows.height, windows.width))
        else:
            noise = fill_cells(noise, windows)
        start = None if start is None else fill_cells(start, windows)
        if known is not None:
            known = KnownLatents(*(fill_cells(each, windows) for each in (known.latents, known.change)))
        network, weak = self.solver.predictor(self.run), self.solver.weak_predictor(self.run)
        if len(windows.corners) == 1:  # the network's own size, to the bit as without windows
            parts = replace(parts, tokens=parts.tokens[:, 0])
        else:
            network = WindowedNetwork(network, windows, self.batch_size)
            weak = None if weak is None else WindowedNetwork(weak, windows, self.batch_size)
        latents = self.solver.latents(self.run, noise, parts, generators, network, on_step, start, weak, known)
        return latents[:, :, : TOKEN_CELLS * rows, : TOKEN_CELLS * columns]

    def bands(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the pixels of such latents from the top down, in bands (3, rows, W), uint8. Raises InputError."""
        for band in decode_bands(self.codec.decode, latents, self.decode_tile):
            yield to_uint8(check_pixels(band, self.codec))


def fill_window(condition: Condition, windows: Windows) -> Condition:
    """Extend the condition of an image smaller than a window, of which it becomes the top left corner.

    The last tokens of the grid (1, R, K, D) and the last cells of the control are repeated; other conditions stay as
    they are.
    """
    tokens, control = condition.tokens, condition.control
    for axis, cells in ((1, windows.height), (2, windows.width)):
        lacking = cells // TOKEN_CELLS - tokens.shape[axis]
        last = tokens.narrow(axis, tokens.shape[axis] - 1, 1)
        tokens = torch.cat([tokens, last.repeat_interleave(lacking, axis)], axis)
    if control is not None:
        control = fill_cells(control, windows)
    return replace(condition, tokens=tokens, control=control)


def fill_cells(cells: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Extend cells (B, C, h, w) of an image smaller than a window to the window: the last ones are repeated."""
    below, right = windows.height - cells.shape[2], windows.width - cells.shape[3]
    return F.pad(cells, (0, right, 0, below), mode="replicate")
