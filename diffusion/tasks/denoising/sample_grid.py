"""Grids of samples while a run learns: the same conditions and the same noise every time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from diffusion.config.settings import Config, SampleGridConfig
from diffusion.data.batch import BadItem, PatchItem, collate
from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad
from diffusion.data.sampler import Draw
from diffusion.formats import DEFAULT_SOLVER
from diffusion.sampling import image_generator, initial_noise, prepare_scheduler
from diffusion.tasks.denoising.prediction import PredictingTask

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.encoders.latents import LatentCodec
    from diffusion.training.monitoring.run_log import RunLogger


class SampleGrid:
    """An evaluation: samples for conditions spread evenly over the data set, as a picture beside every save."""

    steps = None

    def __init__(
        self,
        dataset: PanCancerData | SkipBad,
        task: PredictingTask,
        codec: LatentCodec | None,
        config: Config,
        accelerator: Accelerator,
    ):
        self.dataset, self.task, self.settings, self.seed = dataset, task, config.sample_grid, config.seed
        self.codec, self.accelerator = codec, accelerator

    def __call__(self, network: nn.Module, logger: RunLogger, step: int) -> None:
        """Sample, in all processes when they share the network, and log the picture in the main one."""
        main = self.accelerator.is_main_process
        if main or self.accelerator.is_fsdp2:
            pixels = self.sample(network, self.codec if main else None)
            if pixels is not None:
                logger.picture("samples", pixels, step)

    def sample(self, network: nn.Module, codec: LatentCodec | None) -> torch.Tensor | None:
        """Return a picture (3, H, W) in [0, 1]; None without a codec, for processes that only share the network."""
        from torchvision.utils import make_grid

        device, count = self.accelerator.device, self.settings.count
        batch = self.task.collate(read_grid_items(self.dataset, count, self.seed))
        generators = [image_generator(self.seed, i) for i in range(count)]
        noise, condition = initial_noise(generators, tuple(batch.latents.shape[1:])), batch.condition
        settings = (self.settings.steps, self.settings.guidance)
        latents = self.task.sample(network, noise.to(device), condition.to(device), *settings, generators)
        if codec is None:
            return None
        pixels = [codec.decode(latent[None]) for latent in latents]  # one by one: a large VAE's activations are large
        return make_grid((torch.cat(pixels).cpu() + 1) / 2, nrow=4)


def check_sample_grid(dataset: PanCancerData | SkipBad, settings: SampleGridConfig, seed: int) -> None:
    """Raise InputError for steps that the sample grids' solver cannot take, and conditions that cannot be read."""
    if settings.count:
        prepare_scheduler(DEFAULT_SOLVER, settings.steps)
        collate(read_grid_items(dataset, settings.count, seed))


def read_grid_items(dataset: PanCancerData | SkipBad, count: int, seed: int) -> list[PatchItem | BadItem]:
    """Read the items whose conditions the sample grids have: spread evenly over the data set."""
    return [dataset[Draw(i * len(dataset) // count, seed)] for i in range(count)]
