"""The state of a run: everything that its next step depends on, as one object."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from diffusion.config.settings import Config
from diffusion.model.pixart import PixArt
from diffusion.optim.ema import EMA, PowerEMA
from diffusion.timesteps import TimestepSampler
from diffusion.training.monitoring.run_log import BadItems, Meter, redistribute_meters
from diffusion.training.parallel.fsdp import gather_full, shard_optimizer_state
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class RunState:
    """What a run is made of, and how far it has come.

    step: optimizer steps, skipped ones too. position: samples taken from the stream by all processes together; epoch
    and place in its permutation follow from it, as does every sample's noise. skipped: steps without an update.
    """

    config: Config
    data: dict[str, Any]  # what tells its data set from another
    model: PixArt
    ema: EMA
    optimizer: Optimizer
    lr_schedule: LRScheduler
    accelerator: Accelerator
    meter: Meter
    bad_items: BadItems
    timesteps: TimestepSampler
    power_ema: PowerEMA
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
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
        self.step += 1
        self.power_ema.update(self.model, self.step)  # its profile is of all steps, skipped ones too

    @property
    def scale_is_high(self) -> bool:
        """Whether fp16's scaler may still find a scale at which gradients fit; then infinite ones are no bad sign."""
        return self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() > 1

    def state_dict(self) -> dict[str, Any]:
        """The state as whole tensors and plain values: one file serves all processes, and any number of them.

        To be called by all, who then agree on the bad items; of a sharded network the main process alone gets the tensors.
        """
        from accelerate.utils import gather_object

        self.bad_items.settle()
        scaler, keep = self.accelerator.scaler, self.accelerator.is_main_process
        return {
            "model": gather_full(self.model.state_dict(), keep),
            "ema": gather_full(self.ema.tensors, keep),
            "power_ema": gather_full(self.power_ema.state_dict(), keep),
            "timesteps": self.timesteps.state_dict(),
            "architecture": self.model.config.to_dict(),
            "prediction_type": self.config.prediction_type,
            "optimizer_type": self.config.optimizer.type,
            "optimizer": gather_full(self.optimizer.state_dict(), keep),
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

    def load(self, saved: dict[str, Any]) -> None:
        """Put a state back; the network's weights, which decide what the rest is built on, are loaded already.

        The optimizer's settings, its learning rate among them, stay those it was built with: a run can go on with others.
        """
        self.ema.load(saved["ema"])
        self.power_ema.load_state_dict(saved["power_ema"])
        self.timesteps.load_state_dict(saved["timesteps"])
        settings = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        try:
            state = shard_optimizer_state(saved["optimizer"], self.optimizer)
            if len(state["param_groups"]) != len(settings):
                raise ValueError(f"{len(state['param_groups'])} groups instead of {len(settings)}")
            # ours must be in it: by `fused` torch decides whether its counts of steps go to the GPU
            groups = [{**group, **own} for group, own in zip(state["param_groups"], settings, strict=True)]
            self.optimizer.load_state_dict({**state, "param_groups": groups})
        except ValueError as error:
            raise InputError(
                f"the checkpoint's optimizer groups other parameters than this one ({error}); start a new run"
            ) from None
        self._load_lr_schedule(saved["lr_schedule"])
        if self.accelerator.scaler is not None and saved["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.step, self.position, self.skipped = saved["step"], saved["position"], saved["skipped"]
        given_up = saved["skipped_in_a_row"] >= saved["config"]["max_bad_steps"]
        self.skipped_in_a_row = 0 if given_up else saved["skipped_in_a_row"]  # a person has read the report since
        self.bad_items.load_state_dict(saved["bad_items"])
        processes, count = saved["processes"], self.accelerator.num_processes
        if len(processes) == count:
            own = processes[self.accelerator.process_index]
            self.meter.load_state_dict(own["meter"])
            set_random_state(own["random"], self.accelerator.device)
        else:  # their losses are shared out; their generators, which training does not draw from, have no heirs
            self.meter.load_state_dict(redistribute_meters([process["meter"] for process in processes], count))

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
    """Begin this process's generators; of every process with a seed of its own."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes no larger ones


def random_state(device: torch.device) -> dict[str, Any]:
    """The generators of this process. Training draws from none of them: they are for what others add to it."""
    kind, keys, *rest = np.random.get_state()
    states = {"cpu": torch.get_rng_state(), "python": random.getstate(), "numpy": (kind, keys.tolist(), *rest)}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_state(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if device.type in states and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])
