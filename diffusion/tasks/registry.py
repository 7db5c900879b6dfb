"""The tasks by the names that configs call them."""

from __future__ import annotations

from typing import Any

from diffusion.config.settings import Config, TrainingConfig
from diffusion.tasks.codec.task import Codec, CodecConfig
from diffusion.tasks.denoising.task import Denoising
from diffusion.training.task import Task

TASKS: dict[str, type[Task[Any]]] = {task.name: task for task in (Denoising, Codec)}
CONFIGS: dict[str, type[TrainingConfig]] = {"denoising": Config, "codec": CodecConfig}  # what `task` in a file selects


def build_task(config: TrainingConfig) -> Task[Any]:
    """Build the task of a config."""
    return TASKS[config.task](config)
