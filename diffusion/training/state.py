"""The state of a run: everything that its next step depends on, as one object."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from diffusion.config.settings import TrainingConfig
from diffusion.optim.build import group_parameters
from diffusion.optim.ema import EMA, PowerEMA, trained_state
from diffusion.training.frozen import FrozenNetwork, FrozenParameters, describe_frozen_networks
from diffusion.training.monitoring.meters import BadItems, Meter, redistribute_meters
from diffusion.training.task import Task
from diffusion.utils.errors import InputError
from diffusion.utils.sharded import gather_full, shard_optimizer_state

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class RunState:
    """The parts of a run, and how far it has come.

    step: optimizer steps, skipped ones too. position: samples taken from the stream by all processes together; epoch
    and place in its permutation follow from it, as does every sample's noise. skipped: steps without an update.
    """

    config: TrainingConfig
    task: Task
    data: Mapping[str, Any]  # the identity of its data set
    model: nn.Module
    ema: EMA
    optimizer: Optimizer
    lr_schedule: LambdaLR
    accelerator: Accelerator
    meter: Meter
    bad_items: BadItems
    power_ema: PowerEMA
    frozen: FrozenParameters
    frozen_networks: Mapping[str, FrozenNetwork]
    step: int = 0
    position: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def update(self, losses_finite: bool, gradient_finite: bool) -> None:
        """End a step: let the optimizer, the learning rate and the average go on, unless its numbers are not finite.

        Under fp16 the scaler hears of a step that is left out, and lowers its scale when the gradient was infinite.
        """
        finite = losses_finite and gradient_finite
        if finite:
            self.optimizer.step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()
        if finite and not self.accelerator.optimizer_step_was_skipped:
            self.lr_schedule.step()
            self.ema.update(self.model)
            self.task.after_step(self.model, self.ema)
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
        self.step += 1
        self.power_ema.update(self.model, self.step)  # its profile is of all steps, skipped ones too

    @property
    def scale_is_high(self) -> bool:
        """Tell whether fp16's scaler may still find a scale at which gradients fit; then infinite ones are expected."""
        return self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() > 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state as full tensors and plain values: one file serves all processes, and any number of them.

        To be called by all, who then agree on the bad items; of a sharded network the main process alone gets the tensors.
        """
        from accelerate.utils import gather_object

        self.bad_items.synchronise()
        scaler, keep = self.accelerator.scaler, self.accelerator.is_main_process
        entries = {**self.task.state_dict(), **self.metadata()}
        state = {
            "task": self.task.name,
            "model": gather_full(trained_state(self.model), keep),
            "ema": gather_full(self.ema.tensors, keep),
            "power_ema": gather_full(self.power_ema.state_dict(), keep),
            "frozen": self.frozen.describe(),
            "frozen_networks": describe_frozen_networks(self.frozen_networks),
            "optimizer_type": self.config.optimizer.type,
            "optimizer": gather_full(self.optimizer.state_dict(), keep),
            "optimizer_names": self._optimizer_names(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "step": self.step,
            "position": self.position,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "bad_items": self.bad_items.state_dict(),
            "config": dataclasses.asdict(self.config),
            "data": self.data,
            "processes": gather_object([self._process_state()]),
        }
        if entries.keys() & state.keys():
            raise ValueError(
                f"{self.task.name} names entries of the run itself: {sorted(entries.keys() & state.keys())}"
            )
        return state | entries

    def metadata(self) -> dict[str, Any]:
        """Return what files of weights say of the network."""
        return self.task.metadata(self.model)

    def export(self, state: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a file of averaged weights to use, from a state of this run and its metadata."""
        return self.task.export(state["ema"], self.frozen.tensors, {**metadata, "step": state["step"]})

    def load(self, saved: dict[str, Any]) -> None:
        """Restore a state; the network's weights, from which the rest is built, are loaded already.

        The optimizer's settings, its learning rate among them, stay those it was built with: a run can go on with others.
        """
        self.ema.load(saved["ema"])
        self.power_ema.load_state_dict(saved["power_ema"])
        self.task.load_state_dict(saved)
        self._load_optimizer(saved["optimizer"], saved.get("optimizer_names"))
        self._load_lr_schedule(saved["lr_schedule"])
        if self.accelerator.scaler is not None and saved["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.step, self.position, self.skipped = saved["step"], saved["position"], saved["skipped"]
        given_up = saved["skipped_in_a_row"] >= saved["config"]["max_bad_steps"]
        self.skipped_in_a_row = 0 if given_up else saved["skipped_in_a_row"]  # the report has been read since
        self.bad_items.load_state_dict(saved["bad_items"])
        processes, count = saved["processes"], self.accelerator.num_processes
        if len(processes) == count:
            own = processes[self.accelerator.process_index]
            self.meter.load_state_dict(own["meter"])
            set_random_state(own["random"], self.accelerator.device)
        else:  # their losses are redistributed; their generators, which training does not draw from, are dropped
            self.meter.load_state_dict(redistribute_meters([process["meter"] for process in processes], count))

    def _load_optimizer(self, saved: dict[str, Any], names: list[list[str]] | None) -> None:
        settings = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        try:
            state = shard_optimizer_state(self._match_parameters(saved, names), self.optimizer)
            if len(state["param_groups"]) != len(settings):
                raise ValueError(f"{len(state['param_groups'])} groups instead of {len(settings)}")
            # ours must be in it: by `fused` torch decides whether its counts of steps go to the GPU
            groups = [{**group, **own} for group, own in zip(state["param_groups"], settings, strict=True)]
            self.optimizer.load_state_dict({**state, "param_groups": groups})
        except ValueError as error:
            raise InputError(
                f"the checkpoint's optimizer groups other parameters than this one ({error}); start a new run"
            ) from None

    def _optimizer_names(self) -> list[list[str]]:
        """Return the names of the optimizer's parameters by group."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [[names[id(parameter)] for parameter in group["params"]] for group in self.optimizer.param_groups]

    def _match_parameters(self, saved: dict[str, Any], names: list[list[str]] | None) -> dict[str, Any]:
        """Return an optimizer's state with the parameters of today: frozen ones are dropped, others begin without a state."""
        if names is None:
            return self._drop_frozen(saved)
        numbers = {
            name: number
            for group, group_names in zip(saved["param_groups"], names, strict=True)
            for number, name in zip(group["params"], group_names, strict=True)
        }
        current = [name for group in self._optimizer_names() for name in group]
        state = {
            new: saved["state"][numbers[name]]
            for new, name in enumerate(current)
            if numbers.get(name) in saved["state"]
        }
        return {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}

    def _drop_frozen(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Drop the frozen parameters from the state of an older version, which had them in the optimizer, without names."""
        everything = group_parameters(self.model, self.config.optimizer.type, self.task.select_matrices(self.model))
        groups = saved["param_groups"]
        if [len(group["params"]) for group in groups] != [len(parameters) for parameters in everything]:
            return saved
        numbers = [
            [number for number, parameter in zip(group["params"], parameters, strict=True) if parameter.requires_grad]
            for group, parameters in zip(groups, everything, strict=True)
        ]
        renumbered = {old: new for new, old in enumerate(number for group in numbers for number in group)}
        return {
            "state": {renumbered[old]: state for old, state in saved["state"].items() if old in renumbered},
            "param_groups": [
                {**group, "params": [renumbered[old] for old in kept]}
                for group, kept in zip(groups, numbers, strict=True)
            ],
        }

    def _load_lr_schedule(self, saved: dict[str, Any]) -> None:
        peak_rates = list(self.lr_schedule.base_lrs)  # of the config; loading puts the checkpoint's in their place
        self.lr_schedule.load_state_dict(saved)
        self.lr_schedule.base_lrs = peak_rates
        factors = self.lr_schedule.lr_lambdas
        for group, peak, factor in zip(self.optimizer.param_groups, peak_rates, factors, strict=True):
            group["initial_lr"], group["lr"] = peak, peak * factor(self.lr_schedule.last_epoch)

    def _process_state(self) -> dict[str, Any]:
        return {"meter": self.meter.state_dict(), "random": random_state(self.accelerator.device)}


def seed_generators(seed: int) -> None:
    """Seed this process's generators; each process with a seed of its own."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes no larger ones


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of this process's generators. Training draws from none of them; they are for code added to it."""
    legacy = np.random.get_state()
    assert isinstance(legacy, tuple)  # a dict only where asked for
    kind, keys, *rest = legacy
    states = {"cpu": torch.get_rng_state(), "python": random.getstate(), "numpy": (kind, keys.tolist(), *rest)}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_state(states: dict[str, Any], device: torch.device) -> None:
    """Set this process's generators to states that `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if device.type in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])
