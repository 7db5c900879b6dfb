"""Sampling beside diffusers' loop and the plain one, and what it costs outside of the network."""

from __future__ import annotations

import time
from functools import partial

import torch

from diffusion.bench.case import Case, off
from diffusion.bench.clock import take_turns, wait_for
from diffusion.bench.peers import DiffusersNetwork, PlainNetwork, sample_as_diffusers, sample_plainly
from diffusion.bench.table import Row, timed
from diffusion.bench.training import compile_blocks
from diffusion.sampling import sample_latents

GUIDANCE = 2.0


class Timed:
    """A network that tells the seconds of every pass."""

    def __init__(self, network, device: torch.device):
        self.network, self.device, self.seconds = network, device, []

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        began = time.perf_counter()
        output = self.network(*inputs)
        wait_for(self.device)
        self.seconds.append(time.perf_counter() - began)
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
    network = compile_blocks(model) if compiled else model
    ours, watched = partial(sample_latents, network, noise, y, null, steps), Timed(network, case.device)
    candidates = {
        "ours": partial(sample_latents, watched, noise, y, null, steps, GUIDANCE),
        "diffusers": partial(sample_as_diffusers, peer, noise, y, null, steps, GUIDANCE),
        "unguided": partial(ours, guidance=1.0),
        "interval": partial(ours, guidance=GUIDANCE, guidance_interval=interval),
    }
    if plain:
        candidates["plain"] = partial(sample_plainly, PlainNetwork(model), noise, y, null, steps, GUIDANCE)
    with case.autocast():
        seconds, outputs = take_turns(candidates, rounds, case.device, warm=compiled)
    what = f"sampling {case.name}, {steps} steps, batch {case.batch}, guidance"
    rows = [
        timed(f"{what} {GUIDANCE:g}", seconds, against, off=off(outputs["ours"], outputs[against]))
        for against in ("diffusers", *(["plain"] if plain else []))
    ]
    rows.append(timed(f"{what} 1", seconds, "diffusers", "unguided"))
    rows.append(timed(f"{what} {GUIDANCE:g} in {interval[0]:g} to {interval[1]:g}", seconds, "diffusers", "interval"))
    inside = watched.seconds[len(watched.seconds) // (rounds + compiled) * compiled :]
    return [*rows, Row("  outside of the network", "of the time", 1 - sum(inside) / sum(seconds["ours"]))]
