"""Sampling beside diffusers' loop and the plain one, and what it costs outside of the network."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import nn

from benchmarks.case import Case, max_rel_error
from benchmarks.clock import interleave, synchronise, time_once
from benchmarks.peers import PlainNetwork, sample_diffusers_loop, sample_plain_loop
from benchmarks.table import Row, time_row
from diffusion.caching import CachedNetwork, read_schedule
from diffusion.model.jumps import JumpingNetwork, add_target_embedder
from diffusion.sampling import prepare_scheduler, sample_latents

GUIDANCE = 2.0
STUDENT_STEPS = 4


class TimedNetwork:
    """A network that keeps the seconds of every pass."""

    def __init__(self, network: nn.Module, device: torch.device):
        self.network, self.device = network, device
        self.seconds: list[float] = []

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        synchronise(self.device)
        began = time.perf_counter()
        output = self.network(*inputs)
        synchronise(self.device)
        self.seconds.append(time.perf_counter() - began)
        return output


def sampling_rows(
    case: Case, steps: int, rounds: int, interval: tuple[float, float], compiled: bool = False, plain: bool = False
) -> list[Row]:
    """Return rows of sampling guided, unguided, guided in an interval of noise levels, with blocks cached, and by a student, against
    diffusers' loop.

    compiled: guided by a compiled network, too; plain: against the plain loop, too, which takes long.
    """
    model = case.build_network()
    noise, _, y = case.make_inputs(model)
    null, peer = model.null_condition, case.build_peer(model)
    ours, theirs = (partial(sample_latents, model), partial(sample_diffusers_loop, peer))
    candidates = {
        "ours": partial(ours, noise, y, null, steps, GUIDANCE),
        "diffusers guided": partial(theirs, noise, y, null, steps, GUIDANCE),
        "ours unguided": partial(ours, noise, y, null, steps, 1.0),
        "diffusers unguided": partial(theirs, noise, y, null, steps, 1.0),
        "interval": partial(ours, noise, y, null, steps, GUIDANCE, guidance_interval=interval),
    }
    schedule = read_schedule("balanced", steps)
    assert schedule is not None  # of that name there is one

    def cached() -> torch.Tensor:
        network = CachedNetwork(model, schedule)
        return sample_latents(network, noise, y, null, steps, GUIDANCE)

    student = case.build_network()
    add_target_embedder(student)
    jumping = JumpingNetwork(student, prepare_scheduler("ddim", STUDENT_STEPS).timesteps.tolist())
    candidates["cached"] = cached
    candidates["student"] = partial(sample_latents, jumping, noise, y, None, STUDENT_STEPS, 1.0, "ddim")
    if compiled:
        network = case.build_network().compile_blocks()
        candidates["compiled"] = partial(sample_latents, network, noise, y, null, steps, GUIDANCE)
    if plain:
        candidates["plain"] = partial(sample_plain_loop, PlainNetwork(model), noise, y, null, steps, GUIDANCE)
    with case.autocast():
        seconds, outputs = interleave(candidates, rounds, case.device, warm=case.needs_warm_up or compiled)
        timed = TimedNetwork(model, case.device)
        total = time_once(partial(sample_latents, timed, noise, y, null, steps, GUIDANCE), case.device)
    what = f"sampling {case.name}, {steps} steps, batch {case.batch}, guidance"

    def row(guidance: str, ours: str, against: str) -> Row:
        comparable = ours not in ("interval", "cached") and ("unguided" in ours) == ("unguided" in against)
        error = max_rel_error(outputs[ours], outputs[against]) if comparable else None
        return time_row(f"{what} {guidance}", seconds, against, ours, off=error)

    rows = [row(f"{GUIDANCE:g}", "ours", "diffusers guided")]
    outside = 1 - sum(timed.seconds) / total
    rows.append(Row("outside of the network", "of the time", outside, part_of=rows[0].what))
    if plain:
        rows.append(row(f"{GUIDANCE:g}", "ours", "plain"))
    if compiled:
        rows.append(row(f"{GUIDANCE:g}, compiled", "compiled", "diffusers guided"))
    rows += [row("1", "ours unguided", against) for against in ("diffusers unguided", "diffusers guided")]
    rows.append(row(f"{GUIDANCE:g} in {interval[0]:g} to {interval[1]:g}", "interval", "diffusers guided"))
    rows.append(row(f"{GUIDANCE:g}, blocks cached", "cached", "diffusers guided"))
    by_student = f"sampling {case.name}, a student's {STUDENT_STEPS} steps, batch {case.batch}"
    rows.append(time_row(by_student, seconds, "diffusers guided", "student"))
    return rows
