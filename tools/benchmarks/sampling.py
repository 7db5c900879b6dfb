"""Sampling beside diffusers' loop and the plain one, and what it costs outside of the network."""

from __future__ import annotations

import time
from functools import partial

import torch

from benchmarks.case import Case, off
from benchmarks.clock import seconds_of, take_turns, wait_for
from benchmarks.peers import PlainNetwork, sample_as_diffusers, sample_plainly
from benchmarks.table import Row, timed
from diffusion.sampling import sample_latents

GUIDANCE = 2.0


class Timed:
    """A network that tells the seconds of every pass."""

    def __init__(self, network, device: torch.device):
        self.network, self.device, self.seconds = network, device, []

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        wait_for(self.device)
        began = time.perf_counter()
        output = self.network(*inputs)
        wait_for(self.device)
        self.seconds.append(time.perf_counter() - began)
        return output


def sampling_rows(
    case: Case, steps: int, rounds: int, interval: tuple[float, float], compiled: bool = False, plain: bool = False
) -> list[Row]:
    """Guided, unguided, and guided in an interval of noise levels, against diffusers' loop with guidance and without.

    compiled: guided by a compiled network, too; plain: against the plain loop, too, which takes long.
    """
    model = case.network()
    noise, _, y = case.inputs(model)
    null, peer = model.null_condition, case.peer(model)
    ours, theirs = (partial(sample_latents, model), partial(sample_as_diffusers, peer))
    candidates = {
        "ours": partial(ours, noise, y, null, steps, GUIDANCE),
        "diffusers guided": partial(theirs, noise, y, null, steps, GUIDANCE),
        "ours unguided": partial(ours, noise, y, null, steps, 1.0),
        "diffusers unguided": partial(theirs, noise, y, null, steps, 1.0),
        "interval": partial(ours, noise, y, null, steps, GUIDANCE, guidance_interval=interval),
    }
    if compiled:
        network = case.network().compile_blocks()
        candidates["compiled"] = partial(sample_latents, network, noise, y, null, steps, GUIDANCE)
    if plain:
        candidates["plain"] = partial(sample_plainly, PlainNetwork(model), noise, y, null, steps, GUIDANCE)
    with case.autocast():
        seconds, outputs = take_turns(candidates, rounds, case.device, warm=case.first_run_is_slower or compiled)
        watched = Timed(model, case.device)
        whole = seconds_of(partial(sample_latents, watched, noise, y, null, steps, GUIDANCE), case.device)
    what = f"sampling {case.name}, {steps} steps, batch {case.batch}, guidance"

    def row(guidance: str, ours: str, against: str) -> Row:
        same = ours != "interval" and ("unguided" in ours) == ("unguided" in against)
        apart = off(outputs[ours], outputs[against]) if same else None
        return timed(f"{what} {guidance}", seconds, against, ours, off=apart)

    rows = [row(f"{GUIDANCE:g}", "ours", "diffusers guided")]
    outside = 1 - sum(watched.seconds) / whole
    rows.append(Row("outside of the network", "of the time", outside, part_of=rows[0].what))
    if plain:
        rows.append(row(f"{GUIDANCE:g}", "ours", "plain"))
    if compiled:
        rows.append(row(f"{GUIDANCE:g}, compiled", "compiled", "diffusers guided"))
    rows += [row("1", "ours unguided", against) for against in ("diffusers unguided", "diffusers guided")]
    rows.append(row(f"{GUIDANCE:g} in {interval[0]:g} to {interval[1]:g}", "interval", "diffusers guided"))
    return rows
