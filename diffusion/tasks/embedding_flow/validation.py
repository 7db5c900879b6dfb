"""The loss of a flow on held-out embeddings, and how near those that it translates are to the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from diffusion.config.flow_settings import EmbeddingFlowConfig
from diffusion.data.batch import BadItem
from diffusion.data.datasets.embeddings import EmbeddingBatch, EmbeddingData, EmbeddingItem, build_embedding_data
from diffusion.data.sampler import Draw
from diffusion.model.flow import EmbeddingFlow
from diffusion.tasks.embedding_flow.losses import FlowNoise, draw_flow_noise, flow_losses
from diffusion.tasks.held_out import HeldOutLosses

if TYPE_CHECKING:
    from accelerate import Accelerator

STEPS = 20  # of the flow, in training; more change the cosine by less than a thousandth


class FlowTask(Protocol):
    """A task that trains a flow: its embeddings, the flow, and how samples become a batch."""

    @property
    def data(self) -> EmbeddingData: ...
    @property
    def flow(self) -> EmbeddingFlow: ...
    def collate(self, items: Sequence[EmbeddingItem | BadItem]) -> EmbeddingBatch: ...


class FlowValidation(HeldOutLosses):
    """An evaluation: the mean loss of `config.validation.count` held-out images, each at times and noise of its own seed.

    Of a flow that translates there are, too: `cosine`, the mean cosine of its embeddings with the true ones, and
    `cosine_source`, that of the embeddings that it starts from.
    Raises MissingError, InputError for a set that is not there.
    """

    def __init__(self, config: EmbeddingFlowConfig, task: FlowTask, accelerator: Accelerator):
        self.task = task
        classes = task.data.classes
        names = None if classes is None else classes.names  # of training: a set without some has the same numbers
        self.dataset = build_embedding_data(**config.validation_arguments, class_names=names)
        super().__init__(accelerator, config.validation.count, len(self.dataset), config.train_batch_size)

    def losses(self, network: Any, numbers: list[int]) -> dict[str, torch.Tensor]:
        """Compute the loss, and cosines where the flow translates, of images by their numbers, (B,) each."""
        draws = [Draw(self.place(number), self.seed(number)) for number in numbers]
        batch = self.task.collate([self.dataset[draw] for draw in draws])
        noise = draw_flow_noise(
            [draw.seed for draw in draws], batch.tokens, self.task.flow
        )  # on the CPU: the same anywhere
        device = self.accelerator.device
        batch = batch.to(device)
        noise = FlowNoise(noise.time.to(device), None if noise.noise is None else noise.noise.to(device))
        losses = {"loss": flow_losses(network, self.task.flow, batch, noise)}
        if batch.source is not None:
            translated = self.task.flow.translate(batch.source, STEPS)
            for name, tokens in (("cosine", translated), ("cosine_source", batch.source)):
                losses[name] = F.cosine_similarity(tokens, batch.tokens, dim=-1).mean(dim=1)
        return losses
