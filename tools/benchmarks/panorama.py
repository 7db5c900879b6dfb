"""Large pictures beside the loop of one window at a time, and their memory at two sizes."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.case import Case, max_rel_error
from benchmarks.clock import interleave, measure_peak_memory
from benchmarks.peers import panorama_plain_loop
from benchmarks.sampling import GUIDANCE
from benchmarks.table import Row, compare_row, time_row
from diffusion.encoders.latents import LatentCodec
from diffusion.formats import LATENT_FACTOR, WINDOW
from diffusion.model.pixart import PixArt
from diffusion.panorama import WindowedNetwork, Windows, decode_bands, window_tokens
from diffusion.sampling import sample_latents
from diffusion.utils.memory import keep_freed_memory

SMALL, LARGE = 2048, 4096  # pixels a side


def panorama_rows(case: Case, steps: int, rounds: int) -> list[Row]:
    """Return rows of a guided picture of 4096 x 4096 pixels; the case's batch is the number of windows in a pass."""
    model = case.build_network()
    windows, noise, y = make_scene(model, case, LARGE)
    null = model.null_condition
    network = WindowedNetwork(model, windows, case.batch)
    candidates = {
        "ours": partial(sample_latents, network, noise, y[None], null, steps, GUIDANCE),
        "window by window": partial(panorama_plain_loop, model, windows, noise, y, null, steps, GUIDANCE),
    }
    with case.autocast():
        seconds, outputs = interleave(candidates, rounds, case.device, warm=case.needs_warm_up)
    what = f"{LARGE} x {LARGE} {case.name}, {steps} steps, {len(windows.corners)} windows, {case.batch} at once"
    rows = [time_row(what, seconds, "window by window", off=max_rel_error(*outputs.values()))]
    large, small = (measure_peak_memory(paint, case, side) / 2**20 for side in (LARGE, SMALL))
    if not large or not small:  # the system does not say
        return rows
    return [*rows, compare_row("memory, with decoding", "MiB", large, small, f"ours at {SMALL}", part_of=what)]


def make_scene(model: PixArt, case: Case, pixels: int) -> tuple[Windows, torch.Tensor, torch.Tensor]:
    """Return windows half a window apart, noise (1, C, H, W), and the windows' tokens (n, L, D) of random embeddings."""
    side, cells = case.pixels // LATENT_FACTOR, pixels // LATENT_FACTOR
    windows = Windows(cells, cells, side, side // 2)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, model.config.in_channels, cells, cells, generator=generator)
    grid = torch.randn(pixels // WINDOW, pixels // WINDOW, model.config.caption_channels, generator=generator)
    tokens = window_tokens(grid, windows, case.pixels // WINDOW)
    return windows, noise.to(case.device), tokens.to(case.device)


def paint(case: Case, pixels: int) -> None:
    """Paint a picture in one step, from noise to pixels, of which one band is in memory at a time."""
    keep_freed_memory()
    model = case.build_network()
    codec = LatentCodec.load("tiny", case.device)
    windows, noise, y = make_scene(model, case, pixels)
    network = WindowedNetwork(model, windows, case.batch)
    with case.autocast():
        latents = sample_latents(network, noise, y[None], model.null_condition, 1, GUIDANCE)
    for _ in decode_bands(codec.decode, latents):
        pass
