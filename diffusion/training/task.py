"""What a run trains: the seam between the trainer and everything that can be trained.

A task names the data, the network, its losses, what is evaluated and what is saved for use. From the trainer it gets
accumulation, precision, several processes, stops, checkpoints, exact resume, averaged weights and the log.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

import torch
from torch import nn

from diffusion.config.settings import TrainingConfig
from diffusion.data.batch import Batch
from diffusion.data.sampler import Draw
from diffusion.optim.build import build_optimizer
from diffusion.optim.ema import EMA
from diffusion.training.frozen import FrozenNetwork
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.training.monitoring.run_log import RunLogger

ConfigType = TypeVar("ConfigType", bound=TrainingConfig)


class TrainingData(Protocol):
    """A data set whose samples are asked for by Draws: which sample, and the seed of what is random about it."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Draw) -> Any: ...

    def identity(self) -> Mapping[str, Any]:
        """Return plain values that tell these samples and their order from any others."""
        ...


class Evaluation(Protocol):
    """Something that is computed with the averaged weights on the way. All processes call it together."""

    @property
    def steps(self) -> Container[int] | None:
        """The optimizer steps after which it is due; None for every step that is saved."""
        ...

    def __call__(self, network: Any, logger: RunLogger, step: int) -> None:
        """Evaluate a network that is in eval mode and has its averaged weights, and log the result."""
        ...


class Task(ABC, Generic[ConfigType]):
    """What a run trains. A subclass defines the four abstract methods, and of the others those whose default does not fit.

    Its methods may narrow `Any`: the network is the one that it builds, the data set likewise, batches those that it collates.

    name: what checkpoints call the task, so that no run goes on as another. losses: names of the values that
    `compute_losses` returns, in the order of the log; the first is what is minimised. sharded_layers: class names of the
    layers that FSDP shards one by one. unused_parameters: whether a step may leave trained parameters without a gradient,
    for which several processes otherwise wait; buffers are not synchronised between processes. max_bad_fraction: share of
    samples that may be unreadable (`Batch.bad`). A task is built for one run, from the config that it is trained with.
    """

    name: ClassVar[str]
    losses: ClassVar[tuple[str, ...]] = ("loss",)
    sharded_layers: ClassVar[tuple[str, ...]] = ()
    unused_parameters: ClassVar[bool] = False
    max_bad_fraction: float = 0.0

    def __init__(self, config: ConfigType):
        self.config = config

    # ---- what every task defines

    @abstractmethod
    def build_dataset(self) -> TrainingData:
        """Open the training set. Raises InputError for one that is missing, or that the network cannot take."""

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Batch:
        """Make a batch of samples; called in the loader's workers."""

    @abstractmethod
    def build_network(self, load_from: str | None) -> tuple[nn.Module, str]:
        """Build the network on the CPU, from weights if a path is given, and say in words where its weights are from.

        torch's generator is seeded, equally in all processes. Parameters that require no gradient are frozen: they are
        neither optimized nor averaged, and stored once, not in every checkpoint.
        """

    @abstractmethod
    def compute_losses(self, network: nn.Module, batch: Any, noise: Any) -> dict[str, torch.Tensor]:
        """Compute every sample's losses, (B,) each, by their names, with what `draw_noise` returned for the batch.

        network: the one to call, which may be wrapped for several processes. A function of its arguments alone.
        """

    # ---- randomness

    def draw_randomness(self, batch: Any) -> Any:
        """Draw what is random about a batch on the device, from `batch.seeds` alone; called before the step, ahead of time."""
        return None

    def draw_noise(self, randomness: Any) -> Any:
        """Turn a batch's randomness into what its losses need; called in the step, so it may depend on the task's state."""
        return randomness

    # ---- state of its own, and weights

    def start(self, network: Any, accelerator: Accelerator) -> None:
        """Set what a new network takes from the data, before its first step; not called for a run that goes on.

        For all processes together, on whose devices the network is; afterwards it is equal in all of them.
        """

    def update(self, steps: Sequence[tuple[Any, dict[str, torch.Tensor]]], accelerator: Accelerator) -> None:
        """Learn from a step's losses: the noise and the losses of each of its batches. For all processes together."""

    def after_step(self, network: Any, ema: EMA) -> None:
        """Act on an optimizer step that was taken, such as by moving a target network. No gradients are there any more."""

    def state_dict(self) -> dict[str, Any]:
        """Return the task's own state, such as what `update` has learned, as entries of a checkpoint."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load the task's own entries of a checkpoint."""

    def metadata(self, network: Any) -> dict[str, Any]:
        """Return what files of weights say of the network, as plain values."""
        return {}

    def load_weights(self, network: Any, saved: Mapping[str, Any], source: Path) -> None:
        """Load a checkpoint's weights `saved["model"]`. Raises InputError for those of another network."""
        try:
            network.load_state_dict(saved["model"])
        except RuntimeError as error:
            raise InputError(f"{source} is of another network: {' '.join(str(error).split())}") from None

    def export(
        self, averaged: Mapping[str, torch.Tensor], frozen: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the content of a file of averaged weights to use, `last_ema.ckpt`; by default with the frozen parameters."""
        return {"state_dict": {**frozen, **averaged}, **metadata}

    def frozen_networks(self) -> Mapping[str, FrozenNetwork]:
        """Return networks that the losses use and nothing changes; a run is refused when their weights have changed.

        The trainer moves them to the device, under its precision; every process has all of them. The task keeps references
        of its own.
        """
        return {}

    def frozen_source(self) -> Path | None:
        """Return where the frozen parameters of the network are, for a run that stores no copy of them, such as one of an adapter.

        `build_network` then loads them in a run that is resumed, too. None: the run stores them.
        """
        return None

    # ---- how it is trained

    def select_matrices(self, network: Any) -> list[nn.Parameter]:
        """Return the hidden weight matrices, whose updates Muon orthogonalizes; all others get AdamW."""
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        return [cast(nn.Parameter, module.weight) for module in linear]

    def build_optimizer(self, network: Any, lr: float) -> torch.optim.Optimizer:
        """Build the config's optimizer of the trained parameters."""
        return build_optimizer(network, self.config.optimizer, lr, self.select_matrices(network))

    def compile(self, network: Any) -> None:
        """Compile the network in place."""
        network.compile()

    def build_warm_up_batch(self, dataset: Any, count: int) -> Batch:
        """Return a batch of any values, whose gradients several processes discard before the first step."""
        return self.collate([dataset[Draw(0, 0)] for _ in range(count)])

    def check_memory(self, device: torch.device) -> None:
        """Raise InputError for a batch that no memory holds."""

    def flops_per_sample(self) -> float | None:
        """Return the floating-point operations of training on one sample, forward and backward, by which the log tells how busy
        processors are; None: the log does not tell.
        """
        return None

    def build_evaluations(self, accelerator: Accelerator, dataset: Any, total_steps: int) -> list[Evaluation]:
        """Build what is evaluated on the way, with all that it reads; called before any generator is seeded."""
        return []

    # ---- words

    def resolve_config(self, work_dir: Path) -> TrainingConfig:
        """Return the config to leave in the work dir, with absolute paths, so that it opens from any folder."""
        return dataclasses.replace(self.config, work_dir=str(work_dir.resolve()))

    @property
    def description(self) -> tuple[str, str, str]:
        """Return what the log calls the network, a number of samples, and the objective."""
        return self.name, "samples", self.name
