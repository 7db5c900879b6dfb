"""Sampling beside diffusers' loop and the plain one, and what it costs outside of the network."""

from __future__ import annotations

import time
from functools import partial

import torch

from diffusion.bench.case import Case, off
from diffusion.bench.clock import median, take_turns, wait_for
from diffusion.bench.peers import DiffusersNetwork, PlainNetwork, sample_as_diffusers, sample_plainly
from diffusion.bench.table import Row, timed
from diffusion.bench.training import compile_blocks
from diffusion.sampling import sample_latents

GUIDANCE = 2.0


class Timed:
    """A network that counts the seconds in it."""

    def __init__(self, network, device: torch.device):
        self.network, self.device, self.seconds = network, device, 0.0

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        output = self.network(*inputs)
        wait_for(self.device)
        self.seconds += time.perf_counter() - began
        return output


def sampling_rows(
    case: Case, steps: int, rounds: int, interval: tuple[float, float], compiled: bool = False, plain: bool = False
) -> list[Row]:
    """Guided, unguided, and guided in an interval of noise levels, each against diffusers' loop with guidance.

    plain: against the plain loop, too, which takes long.
    """
    model = case.network()
    noise, _, y = case.inputs(model)
    null, peer = model.y_embedder.y_embedding, DiffusersNetwork(model).to(case.device).eval()
    ours = partial(sample_latents, compile_blocks(model) if compiled else model, noise, y, null, steps)
    candidates = {
        "ours": partial(ours, guidance=GUIDANCE),
        "diffusers": partial(sample_as_diffusers, peer, noise, y, null, steps, GUIDANCE),
        "unguided": partial(ours, guidance=1.0),
        "interval": partial(ours, guidance=GUIDANCE, guidance_interval=interval),
    }
    if plain:
        candidates["plain"] = partial(sample_plainly, PlainNetwork(model), noise, y, null, steps, GUIDANCE)
    with case.autocast():
        seconds, outputs = take_turns(candidates, rounds, case.device)
        outside = [share_outside(model, case, noise, y, null, steps) for _ in range(rounds)]
    what = f"sampling {case.name}, {steps} steps, batch {case.batch}, guidance"
    rows = [
        timed(f"{what} {GUIDANCE:g}", seconds, against, off=off(outputs["ours"], outputs[against]))
        for against in ("diffusers", *(["plain"] if plain else []))
    ]
    rows.append(timed(f"{what} 1", seconds, "diffusers", "unguided"))
    rows.append(timed(f"{what} {GUIDANCE:g} in {interval[0]:g} to {interval[1]:g}", seconds, "diffusers", "interval"))
    return [*rows, Row("  outside of the network", "of the time", median(outside))]


def share_outside(model, case: Case, noise, y, null, steps: int) -> float:
    """Of a guided run's time, what the solver takes."""
    network = Timed(model, case.device)
    began = time.perf_counter()
    sample_latents(network, noise, y, null, steps, GUIDANCE)
    wait_for(case.device)
    return 1 - network.seconds / (time.perf_counter() - began)
