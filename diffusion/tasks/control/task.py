"""Control: train a ControlNet beside a network that stays as it is, by the network's own losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from diffusion.condition import Condition
from diffusion.config.settings import ControlConfig
from diffusion.control import ControlledNetwork
from diffusion.data.batch import BadItem, PatchBatch, PatchItem, collate
from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad
from diffusion.formats import LATENT_CHANNELS, LATENT_FACTOR
from diffusion.model.controlnet import ARCHITECTURE, ControlNet, load_controlnet, load_controlnet_weights
from diffusion.model.convert import load_network
from diffusion.model.lora import check_no_student, load_lora, merge_lora
from diffusion.model.pixart import PixArt
from diffusion.tasks.denoising.losses import BatchNoise
from diffusion.tasks.denoising.prediction import Predictor
from diffusion.tasks.denoising.task import Denoising
from diffusion.training.frozen import FrozenNetwork
from diffusion.utils.errors import InputError


class Control(Denoising):
    """Minimise the losses of denoising over the weights of a ControlNet. The network that it steers stays as it is.

    Raises InputError for a config without such a network, or without masks or latents to control by.
    """

    name = "control"

    config: ControlConfig

    def __init__(self, config: ControlConfig):
        config.check_controlled()
        super().__init__(config)
        self._base: FrozenNetwork | None = None

    def collate(self, items: Sequence[PatchItem | BadItem]) -> PatchBatch:
        """Make a batch of the patches that could be read; latents that control are scaled as the network takes latents."""
        batch = collate(items)
        control = batch.condition.control
        if control is None or self.config.data.control_maps:
            return batch
        scaled = Condition(batch.condition.tokens, self.batch_losses.scale.to_network(control))
        return dataclasses.replace(batch, condition=scaled)

    def build_network(self, load_from: str | None) -> tuple[ControlNet, str]:
        """Build a ControlNet: a copy of the first blocks of the network that it is to steer, or from weights of one."""
        config, source = self.config, cast(str, self.config.control.base)
        base, file = load_network(source, config.model, config.model_arguments, config.prediction_type)
        if config.lora.load_from is not None:
            load_lora(base, config.lora.load_from)
            check_no_student(base, f"lora.load_from {config.lora.load_from}")
            merge_lora(base)
        base.grad_checkpointing = config.grad_checkpointing  # the gradient of the ControlNet runs through it
        self._base = FrozenNetwork.of(base, file)
        controlnet = ControlNet.of(
            base, config.control.blocks, config.data.control_maps, config.data.mask_kind, config.control.copy_embedder
        )
        controlnet.grad_checkpointing = config.grad_checkpointing
        if load_from is None:
            return controlnet, f"the first {controlnet.config.depth} blocks of {self._base.path}"
        loaded = load_controlnet(load_from)
        if loaded.config.maps != controlnet.config.maps:
            raise InputError(
                f"{load_from} is controlled by {', '.join(loaded.config.maps) or 'latents'}, the config by "
                f"{', '.join(controlnet.config.maps) or 'latents'}: expected the same"
            )
        load_controlnet_weights(controlnet, loaded.state_dict(), load_from)
        return controlnet, load_from

    def frozen_networks(self) -> Mapping[str, FrozenNetwork]:
        """Return the network that is steered."""
        assert self._base is not None
        return {"base": self._base}

    def predictor(self, network: Any) -> Predictor:
        """Return the network that is steered, with the ControlNet beside it."""
        return ControlledNetwork(cast(Any, self.frozen_networks()["base"].network), network)

    def compute_losses(self, network: nn.Module, batch: PatchBatch, noise: BatchNoise) -> dict[str, torch.Tensor]:
        """Compute loss, squared error and bound of every sample, (B,) each; all of a batch have a control that counts once."""
        base = cast(Any, self.frozen_networks()["base"].network)
        return self.batch_losses.losses_at(ControlledNetwork(base, network, everywhere=True), batch, noise)

    def metadata(self, network: ControlNet) -> dict[str, Any]:
        """Return the ControlNet's arguments, and what is predicted."""
        return {ARCHITECTURE: network.config.to_dict(), "prediction_type": self.config.prediction_type}

    def load_weights(self, network: ControlNet, saved: Mapping[str, Any], source: Path) -> None:
        """Load a checkpoint's weights. Raises InputError for those of another ControlNet."""
        load_controlnet_weights(network, saved["model"], source)

    def select_matrices(self, network: ControlNet) -> list[nn.Parameter]:
        """Return the linear maps of the blocks, of those behind them, and of the condition's embedder."""
        hidden = [m for part in (network.blocks, network.y_embedder, network.projections) for m in part.modules()]
        return [cast(nn.Parameter, module.weight) for module in hidden if isinstance(module, nn.Linear)]

    def compile(self, network: ControlNet) -> None:
        """Compile the blocks of both networks."""
        network.compile_blocks()
        cast(PixArt, self.frozen_networks()["base"].network).compile_blocks()

    def build_warm_up_batch(self, dataset: PanCancerData | SkipBad, count: int) -> PatchBatch:
        """Return zeros, for which nothing is read."""
        batch, config = super().build_warm_up_batch(dataset, count), self.config
        channels = len(config.data.control_maps) * LATENT_FACTOR**2 or LATENT_CHANNELS
        control = torch.zeros(count, channels, config.input_size, config.input_size)
        return dataclasses.replace(batch, condition=Condition(batch.condition.tokens, control))

    def resolve_config(self, work_dir: Path) -> ControlConfig:
        """Return the config with absolute paths, so that the run can be opened from any folder."""
        config = cast(ControlConfig, super().resolve_config(work_dir))
        base, adapter = cast(str, config.control.base), config.lora.load_from
        if adapter is not None:
            config = dataclasses.replace(
                config, lora=dataclasses.replace(config.lora, load_from=str(Path(adapter).resolve()))
            )
        if not Path(base).exists():  # a network that comes with the package
            return config
        return dataclasses.replace(config, control=dataclasses.replace(config.control, base=str(Path(base).resolve())))

    @property
    def description(self) -> tuple[str, str, str]:
        """Return what the log calls the network, the size of the samples, and what is predicted."""
        _, samples, prediction = super().description
        return "ControlNet", samples, prediction
