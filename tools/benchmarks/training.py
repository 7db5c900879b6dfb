"""The network's forward pass and a training step, beside diffusers'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from benchmarks.case import Case, off
from benchmarks.clock import median, peak_alone, seconds_of, take_turns
from benchmarks.operations import forward_operations
from benchmarks.peers import PlainNetwork
from benchmarks.table import Row, compared, timed
from diffusion.config.settings import OptimizerConfig
from diffusion.objective import training_losses
from diffusion.optim.build import build_optimizer
from diffusion.optim.ema import EMA
from diffusion.utils.memory import keep_freed_memory

CLIP, RATE, DECAY = 0.01, 1e-4, 0.9999
PARTS = ("forward", "backward", "clip", "optimizer", "EMA")


def forward_rows(case: Case, rounds: int, compiled: bool = False) -> list[Row]:
    """A forward pass against diffusers' and the plain one; compiled: ours after torch.compile, too."""
    model = case.network()
    inputs, peer = case.inputs(model), case.peer(model)
    product, product_operations = case.product()
    networks = {"ours": model, "diffusers": peer}
    if compiled:
        networks["compiled"] = case.network().compile_blocks()
    networks["plain"] = PlainNetwork(model)
    turns = {"product": product, **{name: partial(network, *inputs) for name, network in networks.items()}}
    with torch.no_grad(), case.autocast():
        seconds, outputs = take_turns(turns, rounds, case.device)
    operations = forward_operations(model, case.batch, inputs[0][0, 0].numel() // model.config.patch_size**2)
    rate = [product_operations / each for each in seconds["product"]]

    def share(name: str) -> float:
        return median([operations / s / r for s, r in zip(seconds[name], rate, strict=True)])

    what, rows = f"forward {case.name}, batch {case.batch}", []
    for name in ("ours", "compiled") if compiled else ("ours",):
        text = what if name == "ours" else f"{what}, compiled"
        for against in ("diffusers", "plain"):
            difference = off(outputs[name].float(), outputs[against].float())
            rows.append(timed(text, seconds, against, name, share=share(name), off=difference))
    return rows


class Ours:
    """A training step of ours: the objective, AdamW and EMA that the trainer takes."""

    def __init__(self, case: Case, checkpointing: bool = False, compiled: bool = False):
        self.case, model = case, case.network().train()
        self.inputs = case.inputs(model)
        model.grad_checkpointing = checkpointing
        self.dropped = torch.zeros(case.batch, dtype=torch.bool, device=case.device)
        self.parameters = list(model.parameters())
        self.optimizer = build_optimizer(model, OptimizerConfig(type="AdamW"), RATE)
        self.ema = EMA(model, DECAY)
        self.model = model.compile_blocks() if compiled else model

    def network(self, x: torch.Tensor, timestep: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.model(x, timestep, y, self.dropped)

    def clip(self) -> None:
        gradients = [parameter.grad for parameter in self.parameters]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        nn.utils.clip_grads_with_norm_(self.parameters, CLIP, norm, foreach=True)

    def average(self) -> None:
        self.ema.update(self.model)


class Theirs(Ours):
    """The same step as one writes it with diffusers' network and EMAModel, and torch's AdamW."""

    def __init__(self, case: Case):
        self.case, model = case, case.network()
        self.inputs = case.inputs(model)
        self.network = case.peer(model).train()
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, RATE, weight_decay=0.0)
        self.ema = EMAModel(self.parameters, DECAY)

    def clip(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, CLIP)

    def average(self) -> None:
        self.ema.step(self.parameters)


class Step:
    """One step of Ours or Theirs, whose parts are timed one by one."""

    def __init__(self, of: Ours):
        self.of, self.loss = of, torch.zeros(())
        self.noise = torch.randn(of.inputs[0].shape, generator=torch.Generator().manual_seed(2)).to(of.case.device)
        self.parts: dict[str, list[float]] = {part: [] for part in PARTS}

    def __call__(self) -> None:
        actions = (self.forward, self.backward, self.of.clip, self.update, self.of.average)
        for part, action in zip(PARTS, actions, strict=True):
            self.parts[part].append(seconds_of(action, self.of.case.device))

    def forward(self) -> None:
        x, timestep, y = self.of.inputs
        with self.of.case.autocast():
            self.loss = training_losses(self.of.network, x, timestep, y, noise=self.noise)["loss"].mean()

    def backward(self) -> None:
        self.loss.backward()

    def update(self) -> None:
        self.of.optimizer.step()
        self.of.optimizer.zero_grad()

    def share(self, *parts: str) -> float:
        """Of the step, in the rounds that count."""
        sums = {part: sum(seconds[1:]) for part, seconds in self.parts.items()}
        return sum(sums[part] for part in parts) / sum(sums.values())


def step_rows(case: Case, rounds: int, compiled: bool = False) -> list[Row]:
    """A step against the one written with diffusers; how it divides; and what memory both take."""
    ours, theirs = Step(Ours(case, compiled=compiled)), Step(Theirs(case))
    seconds, _ = take_turns({"ours": ours, "diffusers": theirs}, rounds, case.device)
    apart = abs(ours.loss.item() / theirs.loss.item() - 1)
    what = f"training step {case.name}, batch {case.batch}{', compiled' if compiled else ''}"
    rows = [timed(what, seconds, "diffusers", off=apart)]
    for part in PARTS:
        rows.append(
            timed(part, {"ours": ours.parts[part][1:], "diffusers": theirs.parts[part][1:]}, "diffusers", part_of=what)
        )
    shares = ours.share(*PARTS[3:]), theirs.share(*PARTS[3:])
    rows.append(compared("optimizer and EMA", "of the step", *shares, "diffusers", part_of=what))
    return rows


def memory_rows(case: Case) -> list[Row]:
    """Peak memory of a step, in processes of their own."""
    peer = peak_alone(some_steps, Theirs, case) / 2**20
    if not peer:  # the system does not tell
        return []
    own, checkpointed = (peak_alone(some_steps, Ours, case, each) / 2**20 for each in (False, True))
    what = f"memory of a training step {case.name}, batch {case.batch}"
    return [
        compared(what, "MiB", own, peer, "diffusers"),
        compared("with grad_checkpointing", "MiB", checkpointed, peer, "diffusers", part_of=what),
    ]


def some_steps(build: Callable[..., Ours], *arguments: object) -> None:
    keep_freed_memory()  # as the trainer does
    step = Step(build(*arguments))
    for _ in range(2):  # the optimizer's state comes with the first
        step()
