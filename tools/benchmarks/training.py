"""The network's forward pass and a training step, beside those of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from benchmarks.case import Case, max_rel_error
from benchmarks.clock import interleave, measure_peak_memory, time_once
from benchmarks.peers import PlainNetwork
from benchmarks.table import Row, compare_row, time_row
from diffusion.config.settings import OptimizerConfig
from diffusion.model.flops import forward_flops
from diffusion.objective import training_losses
from diffusion.optim.build import build_optimizer
from diffusion.optim.ema import EMA
from diffusion.utils.memory import keep_freed_memory

CLIP, RATE, DECAY = 0.01, 1e-4, 0.9999
PARTS = ("forward", "backward", "clip", "optimizer", "EMA")


def forward_rows(case: Case, rounds: int, compiled: bool = False) -> list[Row]:
    """Return rows of a forward pass against diffusers' and the plain one; compiled: ours after torch.compile, too."""
    model = case.build_network()
    inputs, peer = case.make_inputs(model), case.build_peer(model)
    product, product_operations = case.make_product()
    networks = {"ours": model, "diffusers": peer}
    if compiled:
        networks["compiled"] = case.build_network().compile_blocks()
    networks["plain"] = PlainNetwork(model)
    turns = {"product": product, **{name: partial(network, *inputs) for name, network in networks.items()}}
    with torch.no_grad(), case.autocast():
        seconds, outputs = interleave(turns, rounds, case.device)
    operations = case.batch * forward_flops(model.config)
    rate = [product_operations / each for each in seconds["product"]]

    def share(name: str) -> float:
        return median([operations / s / r for s, r in zip(seconds[name], rate, strict=True)])

    what, rows = f"forward {case.name}, batch {case.batch}", []
    for name in ("ours", "compiled") if compiled else ("ours",):
        text = what if name == "ours" else f"{what}, compiled"
        for against in ("diffusers", "plain"):
            difference = max_rel_error(outputs[name].float(), outputs[against].float())
            rows.append(time_row(text, seconds, against, name, share=share(name), off=difference))
    return rows


class OurSetup:
    """Our training step: the objective, AdamW and EMA as the trainer has them."""

    def __init__(self, case: Case, checkpointing: bool = False, compiled: bool = False):
        self.case, model = case, case.build_network().train()
        self.inputs = case.make_inputs(model)
        model.grad_checkpointing = checkpointing
        self.dropped = torch.zeros(case.batch, dtype=torch.bool, device=case.device)
        self.parameters = list(model.parameters())
        self.optimizer = build_optimizer(model, OptimizerConfig(type="AdamW"), RATE)
        self.ema = EMA(model, DECAY)
        self.model = model.compile_blocks() if compiled else model

    def network(self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.model(x, timestep, y, self.dropped)

    def clip(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        nn.utils.clip_grads_with_norm_(self.parameters, CLIP, norm, foreach=True)

    def average(self) -> None:
        self.ema.update(self.model)


class DiffusersSetup(OurSetup):
    """The same step as one writes it with diffusers' network and EMAModel, and with torch's AdamW."""

    def __init__(self, case: Case):
        self.case, model = case, case.build_network()
        self.inputs = case.make_inputs(model)
        self.network = case.build_peer(model).train()
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, RATE, weight_decay=0.0)
        self.ema = EMAModel(self.parameters, DECAY)

    def clip(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, CLIP)

    def average(self) -> None:
        self.ema.step(self.parameters)


class Step:
    """One training step, whose parts are timed one by one."""

    def __init__(self, setup: OurSetup):
        self.setup, self.loss = setup, torch.zeros(())
        self.noise = torch.randn(setup.inputs[0].shape, generator=torch.Generator().manual_seed(2)).to(
            setup.case.device
        )
        self.parts: dict[str, list[float]] = {part: [] for part in PARTS}

    def __call__(self) -> None:
        actions = (self.forward, self.backward, self.setup.clip, self.update, self.setup.average)
        for part, action in zip(PARTS, actions, strict=True):
            self.parts[part].append(time_once(action, self.setup.case.device))

    def forward(self) -> None:
        x, timestep, y = self.setup.inputs
        with self.setup.case.autocast():
            self.loss = training_losses(self.setup.network, x, timestep, y, noise=self.noise)["loss"].mean()

    def backward(self) -> None:
        self.loss.backward()

    def update(self) -> None:
        self.setup.optimizer.step()
        self.setup.optimizer.zero_grad()

    def share(self, *parts: str) -> float:
        """Return the share of some parts of the step's time, in the rounds that count."""
        sums = {part: sum(seconds[1:]) for part, seconds in self.parts.items()}
        return sum(sums[part] for part in parts) / sum(sums.values())


def step_rows(case: Case, rounds: int, compiled: bool = False) -> list[Row]:
    """Return rows of a step against the one written with diffusers, and of its parts."""
    ours, theirs = Step(OurSetup(case, compiled=compiled)), Step(DiffusersSetup(case))
    seconds, _ = interleave({"ours": ours, "diffusers": theirs}, rounds, case.device)
    difference = abs(ours.loss.item() / theirs.loss.item() - 1)
    what = f"training step {case.name}, batch {case.batch}{', compiled' if compiled else ''}"
    rows = [time_row(what, seconds, "diffusers", off=difference)]
    for part in PARTS:
        rows.append(
            time_row(
                part, {"ours": ours.parts[part][1:], "diffusers": theirs.parts[part][1:]}, "diffusers", part_of=what
            )
        )
    rows.append(
        compare_row(
            "optimizer and EMA",
            "of the step",
            ours.share(*PARTS[3:]),
            theirs.share(*PARTS[3:]),
            "diffusers",
            part_of=what,
        )
    )
    return rows


def memory_rows(case: Case) -> list[Row]:
    """Return rows of the peak memory of a step, each in a fresh process; none where the system does not say it."""
    peer = measure_peak_memory(run_steps, DiffusersSetup, case) / 2**20
    if not peer:
        return []
    own, checkpointed = (measure_peak_memory(run_steps, OurSetup, case, each) / 2**20 for each in (False, True))
    what = f"memory of a training step {case.name}, batch {case.batch}"
    return [
        compare_row(what, "MiB", own, peer, "diffusers"),
        compare_row("with grad_checkpointing", "MiB", checkpointed, peer, "diffusers", part_of=what),
    ]


def run_steps(build: Callable[..., OurSetup], *arguments: object) -> None:
    """Run two steps, since the optimizer's state comes with the first."""
    keep_freed_memory()  # as the trainer does
    step = Step(build(*arguments))
    for _ in range(2):
        step()
