"""Embedding flow: train a flow from the embeddings of one stain to those of another, or from noise to embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from diffusion.components import PROBES
from diffusion.config.flow_settings import EmbeddingFlowConfig
from diffusion.data.batch import BadItem
from diffusion.data.crops import tokens_per_image
from diffusion.data.datasets.embeddings import (
    EmbeddingBatch,
    EmbeddingData,
    EmbeddingItem,
    build_embedding_data,
    collate_embeddings,
)
from diffusion.data.datasets.pan_cancer import SkipBad
from diffusion.data.index.labels import BY_NAME
from diffusion.model.flow import ARCHITECTURE, EmbeddingFlow, FlowConfig, load_flow
from diffusion.model.matching import check_fit
from diffusion.tasks.embedding_flow.losses import FlowNoise, draw_flow_noise, flow_losses
from diffusion.tasks.embedding_flow.validation import FlowValidation
from diffusion.training.task import Evaluation, Task
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

SCALE_IMAGES = 20_000  # to which the scale of a prior is fitted


class EmbeddingFlowTask(Task[EmbeddingFlowConfig]):
    """Minimise the squared error of the velocity of rectified flow (Liu et al. 2022), at times drawn uniformly."""

    name = "embedding_flow"
    sharded_layers = ("ResidualBlock",)

    def __init__(self, config: EmbeddingFlowConfig):
        super().__init__(config)
        self.max_bad_fraction = config.data.max_bad_fraction
        self._data: EmbeddingData | None = None
        self._flow: EmbeddingFlow | None = None

    def build_dataset(self) -> EmbeddingData | SkipBad:
        """Open the embeddings."""
        self._data = build_embedding_data(**self.config.data_arguments)
        return SkipBad(self._data) if self.config.data.on_error == "skip" else self._data

    @property
    def data(self) -> EmbeddingData:
        """Return the embeddings that are trained on."""
        assert self._data is not None  # the trainer opens them first
        return self._data

    def collate(self, items: Sequence[EmbeddingItem | BadItem]) -> EmbeddingBatch:
        """Make a batch of the embeddings that could be read."""
        return collate_embeddings(items)

    def build_network(self, load_from: str | None) -> tuple[EmbeddingFlow, str]:
        """Build a flow: new, of the width of the embeddings, or from weights."""
        config = self.flow_config()
        if load_from is None:
            flow, words = EmbeddingFlow(config), f"seed {self.config.seed}"
        else:
            flow, words = load_flow(load_from), load_from
            self.check_loaded(flow.config, config, load_from)
            flow.train()
        self._flow = flow
        return flow, words

    def start(self, network: EmbeddingFlow, accelerator: Accelerator) -> None:
        """Fit the scale of a new prior to the embeddings: one process does, as others might find other signs of its components."""
        from accelerate.utils import broadcast

        if network.scale is None or self.config.load_from is not None:
            return
        if accelerator.is_main_process:
            items = self.data.read_evenly(SCALE_IMAGES, skip_bad=self.config.data.on_error == "skip")
            labels = [item.label for item in items if item.label is not None]
            network.scale.fit(torch.stack([item.tokens for item in items]), torch.tensor(labels) if labels else None)
        for buffer in network.scale.buffers():
            buffer.copy_(cast(torch.Tensor, broadcast(buffer.clone())))

    def flow_config(self) -> FlowConfig:
        """Return the arguments of the flow that config and embeddings imply. Raises InputError for embeddings that cannot be read."""
        settings, width = self.config.embedding_flow, self.embedding_width()
        hidden = settings.hidden_size
        flow = FlowConfig(
            width=width,
            hidden_size=hidden,
            bottleneck=hidden,
            time_size=hidden,
            sinusoids=hidden // 2 * 2,  # cosines, and as many sines
            depth=settings.depth,
        )
        if self.config.data.source_dataset is not None:
            return flow
        tokens = tokens_per_image(self.config.image_size)
        # a sample's covariance has one rank less than there are rows
        most = min(width, min(SCALE_IMAGES, len(self.data)) * tokens - 1)
        classes = self.data.classes
        return dataclasses.replace(
            flow,
            tokens=tokens,
            components=min(settings.components or most, most),
            classes=() if classes is None else classes.names,
            shares=() if classes is None else classes.shares,
        )

    def embedding_width(self) -> int:
        """Return the width of the embeddings, by the first of some that can be read. Raises InputError when none can."""
        error: InputError | None = None
        for number in range(PROBES):
            try:
                return self.data[number * len(self.data) // PROBES].tokens.shape[-1]
            except InputError as problem:
                error = error or problem
        raise InputError(f"none of {PROBES} items can be read; the first: {error}")

    def check_loaded(self, loaded: FlowConfig, wanted: FlowConfig, source: str) -> None:
        """Raise InputError for a flow that is not of the embeddings and classes to train on; its sizes are its own."""
        for name in ("width", "tokens", "from_noise", "classes"):
            was, now = getattr(loaded, name), getattr(wanted, name)
            if was != now:
                raise InputError(f"{source} is a flow with {name} {was}, and the data are of {now}: expected the same")

    @property
    def flow(self) -> EmbeddingFlow:
        """Return the flow that is trained, which processes may see wrapped."""
        assert self._flow is not None
        return self._flow

    def draw_randomness(self, batch: EmbeddingBatch) -> FlowNoise:
        """Draw times and noise of a batch, each sample's from its own seed."""
        return draw_flow_noise([seed or 0 for seed in batch.seeds], batch.tokens, self.flow)

    def compute_losses(self, network: nn.Module, batch: EmbeddingBatch, noise: FlowNoise) -> dict[str, torch.Tensor]:
        """Compute the squared error of the velocity of every image (B,), a mean over its tokens and their values."""
        return {"loss": flow_losses(network, self.flow, batch, noise)}

    def metadata(self, network: EmbeddingFlow) -> dict[str, Any]:
        """Return the arguments of the flow."""
        return {ARCHITECTURE: network.config.to_dict()}

    def load_weights(self, network: EmbeddingFlow, saved: Any, source: Path) -> None:
        """Load a checkpoint's weights. Raises InputError for those of another flow."""
        check_fit(network.state_dict(), saved["model"], source)
        network.load_state_dict(saved["model"])

    def select_matrices(self, network: EmbeddingFlow) -> list[nn.Parameter]:
        """Return the linear maps of the residual blocks."""
        linear = [module for module in network.res_blocks.modules() if isinstance(module, nn.Linear)]
        return [cast(nn.Parameter, module.weight) for module in linear]

    def build_warm_up_batch(self, dataset: Any, count: int) -> EmbeddingBatch:
        """Return zeros, for which nothing is read."""
        length, width = tokens_per_image(self.config.image_size), self.flow.config.width
        tokens = torch.zeros(count, length, width)
        label = torch.zeros(count, dtype=torch.long) if self.flow.config.classes else None
        source = None if self.flow.config.from_noise else tokens
        return EmbeddingBatch(tokens, source, label, names=[""] * count, seeds=[0] * count)

    def build_evaluations(self, accelerator: Accelerator, dataset: Any, total_steps: int) -> list[Evaluation]:
        """Build the validation, if the config asks for it."""
        return [FlowValidation(self.config, self, accelerator)] if self.config.validation.count else []

    def resolve_config(self, work_dir: Path) -> EmbeddingFlowConfig:
        """Return the config with absolute paths."""
        config = self.config
        root, labels = str(config.data_root.resolve()), config.data.labels
        if labels is not None and labels not in BY_NAME:
            labels = str(Path(labels).resolve())
        data = dataclasses.replace(config.data, root=root, labels=labels)
        return dataclasses.replace(config, work_dir=str(work_dir.resolve()), root=root, data=data)

    @property
    def description(self) -> tuple[str, str, str]:
        """Return the kind of network, the size of the samples, and the objective."""
        source = self.config.data.source_dataset
        return "flow", f"embeddings of {self.config.image_size} pixels", f"velocity from {source or 'noise'}"
