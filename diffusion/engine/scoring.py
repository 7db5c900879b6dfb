"""Scores of a few samples while a run learns: the same conditions and noise every time, so that only the weights differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from diffusion.config import Config
from diffusion.data.crops import WINDOW
from diffusion.data.datasets.pan_cancer import build_dataset
from diffusion.data.sampler import Draw
from diffusion.encoders.embedders import PatchEmbedder, resolve_embedder
from diffusion.encoders.latents import LatentCodec, to_uint8
from diffusion.engine.extract import cut
from diffusion.evaluation.features import Features
from diffusion.evaluation.scores import score
from diffusion.model.pixart import PixArt
from diffusion.sampling import image_generator, initial_noise, make_scheduler, sample_latents
from diffusion.seeds import mix_seed
from diffusion.workdir import check_tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.data.batch import PatchItem

SEED = 0  # of all runs, whatever theirs
ALGORITHM = "dpm-solver"
METRICS = ("fd", "kid", "similarity")
LOGGED = ("fd", "kid", "similarity", "above_random")
SHOWN = 8  # pairs of the picture


class Scored(NamedTuple):
    """Scores by their names, and a picture (3, H, W) in [0, 1] of tissue above what is sampled for it; main process only."""

    values: dict[str, float]
    picture: torch.Tensor


class SampleScores:
    """Frechet and kernel distance, and similarity of pairs, of `config.evaluation.count` samples and the tissue of their conditions.

    Patches are spread evenly over the held-out set, or over the training set where nothing is held out; pictures larger
    than 256 pixels are scored by their windows of 256. The same functions as in tools/evaluate.py take the scores.
    Raises MissingError, InputError for a set, its images or an encoder that are not there.
    """

    def __init__(self, config: Config, codec: LatentCodec, accelerator: Accelerator):
        self.config, self.settings, self.codec, self.accelerator = config, config.evaluation, codec, accelerator
        check_scoring(config)
        self.dataset = build_dataset(**config.validation_arguments, return_img=True)
        self.embedder = PatchEmbedder.load(self.settings.encoder, accelerator.device, root=config.data_root)
        each = math.ceil(
            self.settings.count / accelerator.num_processes
        )  # as many for all: some of the last are too many
        first = each * accelerator.process_index
        self.numbers = [number % self.settings.count for number in range(first, first + each)]
        tissue = [self._item(number).image for number in self.numbers]
        self.shown = tissue[:SHOWN]
        self.real = self._gathered([self._features(image) for image in tissue])

    def __call__(self, network: PixArt) -> Scored | None:
        """Sample with a network in eval mode, and score; for all processes together. None but in the main one."""
        pixels = [image for numbers in self._batches() for image in self._sampled(network, numbers)]
        synthetic = self._gathered([self._features(image) for image in pixels])
        if not self.accelerator.is_main_process:
            return None
        scores = score(self.real, synthetic, METRICS, replicates=0)
        values = {name: scores.values[name].value for name in LOGGED if name in scores.values}
        return Scored(values, self._picture(pixels[:SHOWN]))

    def _item(self, number: int) -> PatchItem:
        place = number * len(self.dataset) // self.settings.count
        return self.dataset[Draw(place, mix_seed(SEED, number))]

    def _batches(self) -> list[list[int]]:
        size = self.config.train_batch_size
        return [self.numbers[i : i + size] for i in range(0, len(self.numbers), size)]

    def _sampled(self, network: PixArt, numbers: list[int]) -> list[torch.Tensor]:
        """Pixels, uint8 (3, S, S), of some of the samples."""
        device, side = self.accelerator.device, self.config.input_size
        noise = initial_noise([image_generator(SEED, number) for number in numbers], (network.in_channels, side, side))
        tokens = torch.stack([self._item(number).tokens for number in numbers])
        latents = sample_latents(
            network,
            noise.to(device),
            tokens.to(device),
            network.y_embedder.y_embedding,
            steps=self.settings.steps,
            guidance=self.settings.guidance,
            algorithm=ALGORITHM,
            prediction_type=self.config.prediction_type,
        )
        return [to_uint8(self.codec.decode(latent[None])[0]) for latent in latents]

    def _features(self, image: torch.Tensor) -> torch.Tensor:
        """Of the windows of an image, uint8 (3, S, S): (k, D)."""
        return self.embedder.embed(cut(image[None], WINDOW))

    def _gathered(self, own: list[torch.Tensor]) -> Features:
        """Features of all processes' images, in the order of their numbers, without those that are too many."""
        features = self.accelerator.gather(torch.stack(own))  # (images, k, D)
        return Features.of(features[: self.settings.count].flatten(0, 1), self.embedder.name)

    def _picture(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        from torchvision.utils import make_grid

        return make_grid([image / 255 for image in (*self.shown, *pixels)], nrow=len(pixels))


def score_steps(config: Config, total_steps: int) -> set[int]:
    """The optimizer steps after which to score samples, the first and the last among them; none when it is not asked for."""
    every = config.eval_steps
    return set() if every is None else {*range(0, total_steps, every), total_steps}


def check_scoring(config: Config) -> None:
    """Raises MissingError, InputError for what `SampleScores` would lack, without loading a network."""
    make_scheduler(ALGORITHM, config.evaluation.steps)
    resolve_embedder(config.evaluation.encoder, config.data_root)
    check_tokens(config, build_dataset(**config.validation_arguments, return_img=True))
