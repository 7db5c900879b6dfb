"""The tasks by the names that configs call them."""

from __future__ import annotations

from typing import Any, NamedTuple

from diffusion.config.distillation_settings import DistillationConfig
from diffusion.config.flow_settings import EmbeddingFlowConfig
from diffusion.config.settings import Config, ControlConfig, TrainingConfig
from diffusion.tasks.codec.task import Codec, CodecConfig
from diffusion.tasks.control.task import Control
from diffusion.tasks.denoising.task import Denoising
from diffusion.tasks.distillation.task import Distillation
from diffusion.tasks.embedding_flow.task import EmbeddingFlowTask
from diffusion.training.task import Task


class Trainable(NamedTuple):
    """A task and the settings that it is trained with."""

    task: type[Task[Any]]
    config: type[TrainingConfig]


TRAINABLE = {  # by what `task` in a config file says
    each.task.name: each
    for each in (
        Trainable(Denoising, Config),
        Trainable(Control, ControlConfig),
        Trainable(Distillation, DistillationConfig),
        Trainable(EmbeddingFlowTask, EmbeddingFlowConfig),
        Trainable(Codec, CodecConfig),
    )
}
CONFIGS = {name: each.config for name, each in TRAINABLE.items()}


def build_task(config: TrainingConfig) -> Task[Any]:
    """Build the task of a config."""
    return TRAINABLE[config.task].task(config)
