"""Scores of a few samples while a run learns: the same conditions and noise every time, so that only the weights differ."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from diffusion.components import PROBES, check_dataset_tokens
from diffusion.config.settings import Config
from diffusion.data.batch import PatchItem
from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad, build_dataset
from diffusion.data.sampler import Draw
from diffusion.encoders.embedder_files import resolve_embedder
from diffusion.encoders.embedders import PatchEmbedder
from diffusion.encoders.latents import LatentCodec, to_uint8
from diffusion.evaluation.metrics.quantities import CURVE_METRICS, CURVES
from diffusion.evaluation.metrics.scores import score
from diffusion.evaluation.sets.features import Features
from diffusion.formats import DEFAULT_SOLVER, LATENT_CHANNELS, WINDOW
from diffusion.sampling import image_generator, initial_noise, prepare_scheduler
from diffusion.tasks.denoising.prediction import PredictingTask
from diffusion.utils.errors import InputError
from diffusion.utils.seeds import mix_seed
from diffusion.utils.windows import cut_windows

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.training.monitoring.run_log import RunLogger

log = logging.getLogger(__name__)

SEED = 0  # of all runs, whatever theirs
SHOWN = 8  # pairs of the picture


class SampleScoreResult(NamedTuple):
    """Scores by their names, and a picture (3, H, W) in [0, 1] of tissue above what is sampled for it; main process only."""

    values: dict[str, float]
    picture: torch.Tensor


class SampleScores:
    """An evaluation: distances, and similarity of pairs, of `config.evaluation.count` samples and their conditions' tissue.

    Patches are spread evenly over the held-out set, or over the training set where nothing is held out; pictures larger
    than 256 pixels are scored by their windows of 256. The same functions as in pixcell evaluate take the scores.
    Raises MissingError, InputError for a set, its images or an encoder that are not there.
    """

    def __init__(
        self, config: Config, task: PredictingTask, codec: LatentCodec, accelerator: Accelerator, total_steps: int
    ):
        self.task = task
        self.steps = score_steps(config.eval_steps, total_steps)
        self.config, self.settings, self.codec, self.accelerator = config, config.evaluation, codec, accelerator
        dataset = check_scoring(config)
        self.embedder = PatchEmbedder.load(self.settings.encoder, accelerator.device, root=config.data_root)
        each = math.ceil(
            self.settings.count / accelerator.num_processes
        )  # as many for all: some of the last are too many
        first = each * accelerator.process_index
        self.numbers = [number % self.settings.count for number in range(first, first + each)]
        items = [first_readable_item(dataset, number, self.settings.count) for number in self.numbers]
        self.conditions = task.collate(items).condition
        images = [item.image for item in items if item.image is not None]  # all: the set returns them
        self.shown = images[:SHOWN]
        self.real = Features.from_tensor(self._gather([self._features(image) for image in images]), self.embedder.name)

    def __call__(self, network: nn.Module, logger: RunLogger, step: int) -> None:
        """Sample with a network in eval mode, score, and log scores and picture."""
        result = self.compute(network)
        if result is None:
            return
        values = ", ".join(f"{name} {value:.4g}" for name, value in result.values.items()) or "not finite"
        log.info("step %d: %d samples, by %s: %s", step, self.settings.count, self.embedder.name, values)
        logger.curves("evaluation", result.values, step)
        logger.picture("evaluation", result.picture, step)

    @torch.no_grad()
    def compute(self, network: nn.Module) -> SampleScoreResult | None:
        """Sample with a network in eval mode, and score; for all processes together. None but in the main one.

        Scores are none when a sample is not finite.
        """
        pixels = [image for batch in self._batches() for image in self._sample(network, batch)]
        synthetic = self._gather([self._features(image) for image in pixels])
        if not self.accelerator.is_main_process:
            return None
        picture = self._picture([image.nan_to_num().to(torch.uint8) for image in pixels[:SHOWN]])
        if not torch.isfinite(synthetic).all():
            return SampleScoreResult({}, picture)
        scores = score(self.real, Features.from_tensor(synthetic, self.embedder.name), CURVE_METRICS, replicates=0)
        return SampleScoreResult({name: scores.values[name].value for name in CURVES if name in scores.values}, picture)

    def _batches(self) -> list[range]:
        """Return places in this process's list of samples."""
        size = self.config.train_batch_size
        return [range(i, min(i + size, len(self.numbers))) for i in range(0, len(self.numbers), size)]

    def _sample(self, network: nn.Module, batch: range) -> list[torch.Tensor]:
        """Return pixels (3, S, S) of some of the samples, whole numbers from 0 to 255, or not finite; on the CPU."""
        device, side = self.accelerator.device, self.config.input_size
        generators = [image_generator(SEED, self.numbers[i]) for i in batch]
        latents = self.task.sample(
            network,
            initial_noise(generators, (LATENT_CHANNELS, side, side)).to(device),
            self.conditions[list(batch)].to(device),
            self.settings.steps,
            self.settings.guidance,
            generators,
        )
        found = []
        for latent in latents:  # one by one: a large VAE's activations are large
            pixels = self.codec.decode(latent[None])[0]
            finite = bool(torch.isfinite(pixels).all())
            found.append(to_uint8(pixels).float() if finite else torch.full(pixels.shape, torch.nan))
        return found

    def _features(self, image: torch.Tensor) -> torch.Tensor:
        """Embed the windows of an image (3, S, S): (k, D); not finite where the image is not."""
        windows = cut_windows(image[None], WINDOW)
        features = self.embedder.embed(windows.nan_to_num().to(torch.uint8))
        return features if torch.isfinite(windows).all() else torch.full_like(features, torch.nan)

    def _gather(self, own: list[torch.Tensor]) -> torch.Tensor:
        """Gather features (N, D) of all processes' images, in the order of their numbers, without those that are too many."""
        features = self.accelerator.gather(torch.stack(own))  # (images, k, D)
        return features[: self.settings.count].flatten(0, 1)

    def _picture(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        from torchvision.utils import make_grid

        return make_grid([image / 255 for image in (*self.shown, *pixels)], nrow=len(pixels))


def first_readable_item(dataset: PanCancerData | SkipBad, number: int, count: int) -> PatchItem:
    """Return one of `count` items spread evenly over a set; of a set that skips what cannot be read, else the next that can.

    Raises InputError when many in a row cannot.
    """
    place, logged, reason = number * len(dataset) // count, "", ""
    for shift in range(PROBES):
        item = dataset[Draw((place + shift) % len(dataset), mix_seed(SEED, number))]
        if isinstance(item, PatchItem):
            return item
        reason = item.reason
        if item.name != logged:
            log.warning("not scored: %s: %s", item.name, reason)
            logged = item.name
    raise InputError(f"none of {PROBES} items in a row can be read to score samples against; the last: {reason}")


def score_steps(every: int | None, total_steps: int) -> set[int]:
    """Return the optimizer steps after which to score samples, the first and the last among them; none when it is not asked for."""
    return set() if every is None else {*range(0, total_steps, every), total_steps}


def check_scoring(config: Config) -> PanCancerData | SkipBad:
    """Open the set that samples are scored on. Raises MissingError, InputError for what `SampleScores` would lack, without
    loading a network."""
    prepare_scheduler(DEFAULT_SOLVER, config.evaluation.steps)
    resolve_embedder(config.evaluation.encoder, config.data_root)
    dataset = build_dataset(**config.validation_arguments, on_error=config.data.on_error, return_img=True)
    check_dataset_tokens(dataset, config.model_max_length, config.caption_channels)
    if config.evaluation.count > len(dataset):
        raise InputError(f"evaluation.count {config.evaluation.count}: the set to score on has {len(dataset)} samples")
    return dataset
