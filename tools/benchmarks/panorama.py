"""Large pictures beside the loop of one window at a time, and their memory at two sizes."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.case import Case, off
from benchmarks.clock import peak_alone, take_turns
from benchmarks.peers import panorama_plainly
from benchmarks.sampling import GUIDANCE
from benchmarks.table import Row, compared, timed
from diffusion.encoders.latents import LatentCodec
from diffusion.formats import WINDOW
from diffusion.model.pixart import PixArt
from diffusion.panorama import WindowedNetwork, Windows, decode_bands, window_tokens
from diffusion.sampling import sample_latents
from diffusion.utils.memory import keep_freed_memory

SMALL, LARGE = 2048, 4096  # pixels a side


def panorama_rows(case: Case, steps: int, rounds: int) -> list[Row]:
    """A guided picture of 4096 x 4096 pixels; the case's batch is the windows in a pass of the network."""
    model = case.network()
    windows, noise, y = scene(model, case, LARGE)
    null = model.null_condition
    network = WindowedNetwork(model, windows, case.batch)
    candidates = {
        "ours": partial(sample_latents, network, noise, y[None], null, steps, GUIDANCE),
        "window by window": partial(panorama_plainly, model, windows, noise, y, null, steps, GUIDANCE),
    }
    with case.autocast():
        seconds, outputs = take_turns(candidates, rounds, case.device, warm=case.first_run_is_slower)
    what = f"{LARGE} x {LARGE} {case.name}, {steps} steps, {len(windows.corners)} windows, {case.batch} at once"
    rows = [timed(what, seconds, "window by window", off=off(*outputs.values()))]
    peaks = [peak_alone(paint, case, side) / 2**20 for side in (LARGE, SMALL)]
    if not all(peaks):  # the system does not tell
        return rows
    return [*rows, compared("memory, with decoding", "MiB", *peaks, f"ours at {SMALL}", part_of=what)]


def scene(model: PixArt, case: Case, pixels: int) -> tuple[Windows, torch.Tensor, torch.Tensor]:
    """Windows half a window apart, noise (1, C, H, W), and the windows' tokens (n, L, D), of random embeddings."""
    side, cells = case.pixels // 8, pixels // 8
    windows = Windows(cells, cells, side, side // 2)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, model.config.in_channels, cells, cells, generator=generator)
    grid = torch.randn(pixels // WINDOW, pixels // WINDOW, model.config.caption_channels, generator=generator)
    tokens = window_tokens(grid, windows, case.pixels // WINDOW)
    return windows, noise.to(case.device), tokens.to(case.device)


def paint(case: Case, pixels: int) -> None:
    """A picture of one step, from noise to pixels, of which a band is held at a time."""
    keep_freed_memory()
    model = case.network()
    codec = LatentCodec.load("tiny", case.device)
    windows, noise, y = scene(model, case, pixels)
    network = WindowedNetwork(model, windows, case.batch)
    with case.autocast():
        latents = sample_latents(network, noise, y[None], model.null_condition, 1, GUIDANCE)
    for _ in decode_bands(codec.decode, latents):
        pass
