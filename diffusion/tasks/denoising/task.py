"""Denoising: train the diffusion transformer on latents of patches, conditioned on their embeddings."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from diffusion.components import check_dataset_tokens, load_codec, resolve_latent_scale
from diffusion.condition import Condition
from diffusion.config.settings import Config
from diffusion.data.batch import BadItem, PatchBatch, PatchItem, collate
from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad, build_dataset
from diffusion.encoders.vae_files import EMBEDDED_CODECS
from diffusion.formats import DEFAULT_SOLVER, LATENT_CHANNELS
from diffusion.model.convert import read_metadata
from diffusion.model.flops import training_flops
from diffusion.model.lora import CHECKPOINT_KEY as LORA_KEY
from diffusion.model.lora import LoraSettings, lora_metadata, rename_lora
from diffusion.model.matching import check_fit, check_metadata, load_into
from diffusion.model.pixart_config import preset_config
from diffusion.optim.ema import trained_state
from diffusion.sampling import sample_latents
from diffusion.tasks.denoising.losses import BatchLosses, BatchNoise, draw_randomness
from diffusion.tasks.denoising.network import build_network
from diffusion.tasks.denoising.prediction import Predictor
from diffusion.tasks.denoising.sample_grid import SampleGrid, check_sample_grid
from diffusion.tasks.denoising.sample_scores import SampleScores
from diffusion.tasks.denoising.validation import Validation
from diffusion.timesteps import build_timestep_sampler
from diffusion.training.task import Evaluation, Task
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.memory import total_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.encoders.latents import LatentScale


class Denoising(Task[Config]):
    """Minimise the error of the predicted noise (or velocity) and the bound of its variance: diffusion/objective.py."""

    name = "denoising"
    losses = ("loss", "mse", "vb")
    sharded_layers = ("PixArtBlock",)

    def __init__(self, config: Config):
        super().__init__(config)
        self.timesteps = build_timestep_sampler(**vars(config.timestep_sampling))
        self.max_bad_fraction = config.data.max_bad_fraction

    def build_dataset(self) -> PanCancerData | SkipBad:
        """Open the patches. Raises InputError for tokens that the network does not take."""
        config = self.config
        dataset = build_dataset(**config.data_arguments, on_error=config.data.on_error)
        check_dataset_tokens(dataset, config.model_max_length, config.caption_channels)
        check_sample_grid(dataset, config.sample_grid, config.seed)
        return dataset

    @functools.cached_property
    def batch_losses(self) -> BatchLosses:
        """Return the losses as the config has them. Raises InputError for a latent scale that is not known."""
        config = self.config
        scale, dropout = resolve_latent_scale(config), config.class_dropout_prob
        return BatchLosses(scale, config.prediction_type, dropout, self.timesteps, config.min_snr_gamma)

    def collate(self, items: Sequence[PatchItem | BadItem]) -> PatchBatch:
        """Make a batch of the patches that could be read."""
        return collate(items)

    def build_evaluations(
        self, accelerator: Accelerator, dataset: PanCancerData | SkipBad, total_steps: int
    ) -> list[Evaluation]:
        """Build validation, sample grids and sample scores, as far as the config asks for them."""
        config, main = self.config, accelerator.is_main_process
        evaluations: list[Evaluation] = []
        scale = self.batch_losses.scale  # one that contradicts the codec is refused before anything is written
        if config.validation.count:
            evaluations.append(self.build_validation(accelerator, scale))
        needs_codec = config.eval_steps or (main and config.sample_grid.count)
        codec = load_codec(config, accelerator.device) if needs_codec else None
        if config.sample_grid.count:
            evaluations.append(SampleGrid(dataset, self, codec, config, accelerator))
        if config.eval_steps and codec is not None:
            evaluations.append(SampleScores(config, self, codec, accelerator, total_steps))
        return evaluations

    def build_validation(self, accelerator: Accelerator, scale: LatentScale) -> Evaluation:
        """Build the evaluation of the loss on held-out samples; scale: of latents, as the network takes them."""
        return Validation(self.config, self, scale, accelerator)

    def build_network(self, load_from: str | None) -> tuple[Any, str]:
        """Build the config's transformer: new, or from weights, with the config's parts frozen."""
        return build_network(self.config, load_from)

    def draw_randomness(self, batch: PatchBatch) -> Any:
        """Draw the noise of a batch, and uniform numbers that choose timesteps and dropped conditions."""
        seeds = cast(list[int], batch.seeds)  # training takes samples by Draws, each with its seed
        return draw_randomness(seeds, batch.latents.shape[1:], batch.latents.device)

    def draw_noise(self, randomness: Any) -> Any:
        """Choose timesteps, by what the sampler has learned, and dropped conditions."""
        return self.batch_losses.draw_noise(randomness)

    def compute_losses(self, network: nn.Module, batch: PatchBatch, noise: Any) -> dict[str, torch.Tensor]:
        """Compute loss, squared error and bound of every sample, (B,) each."""
        return self.batch_losses.losses_at(self.predictor(network), batch, noise)

    def predictor(self, network: Any) -> Predictor:
        """Return what predicts with the network that is trained: that network itself."""
        return network

    def sample(
        self,
        network: Any,
        noise: torch.Tensor,
        condition: Condition,
        steps: int,
        guidance: float,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Sample network latents (B, C, H, W) from noise of that shape, for an evaluation.

        generators: those that the noise of each is from, for samplers that draw more of it.
        """
        predictor = self.predictor(network)
        null, prediction = predictor.null_condition, self.config.prediction_type
        return sample_latents(
            predictor, noise, condition, null, steps, guidance, DEFAULT_SOLVER, generators, prediction
        )

    def update(self, steps: Sequence[tuple[BatchNoise, dict[str, torch.Tensor]]], accelerator: Accelerator) -> None:
        """Update a loss-aware timestep sampler with all processes' unweighted losses."""
        if not self.timesteps.needs_losses:
            return
        pairs = [torch.stack([noise.timestep, losses["loss"].detach() / noise.weight], 1) for noise, losses in steps]
        # batches without their bad items are not equally long; NaN losses count for nothing
        padded = accelerator.pad_across_processes(
            torch.cat(pairs),
            pad_index=math.nan,  # pyright: ignore[reportArgumentType] - typed as an int, and any number will do
        )
        gathered = cast(torch.Tensor, accelerator.gather(padded)).cpu()
        self.timesteps.update(gathered[:, 0].nan_to_num().long(), gathered[:, 1])

    def state_dict(self) -> dict[str, Any]:
        """Return the timestep sampler's state."""
        return {"timesteps": self.timesteps.state_dict()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load the timestep sampler's state."""
        if "timesteps" not in saved:
            raise MissingError(
                "the checkpoint holds no state of the sampler of timesteps: it is of another version; use --load-from to "
                "start from its weights"
            )
        self.timesteps.load_state_dict(saved["timesteps"])

    def metadata(self, network: Any) -> dict[str, Any]:
        """Return the network's architecture, and what it predicts; the settings of an adapter, where one is trained."""
        lora = self.config.lora
        adapter = lora_metadata(LoraSettings.of(lora.rank, lora.alpha, lora.targets)) if lora.rank else None
        return {
            "architecture": network.config.to_dict(),
            "prediction_type": self.config.prediction_type,
            **({LORA_KEY: adapter} if adapter else {}),
        }

    def load_weights(self, network: Any, saved: Mapping[str, Any], source: Path) -> None:
        """Load a checkpoint's weights. Raises InputError for those of another architecture, or another prediction."""
        check_metadata(read_metadata(saved), network, self.config.prediction_type, source)
        if self.config.lora.rank:  # the rest stays where load_from has it
            own = trained_state(network)
            check_fit(own, saved["model"], source)
            network.load_state_dict(saved["model"], strict=False)
        else:
            load_into(network, saved["model"], source)

    def frozen_source(self) -> Path | None:
        """Return the weights that an adapter is trained beside, of which the run keeps no copy."""
        return Path(str(self.config.load_from)) if self.config.lora.rank else None

    def export(
        self, averaged: Mapping[str, torch.Tensor], frozen: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the averaged weights with what belongs to them; of a run that trains an adapter, the adapter alone."""
        if not self.config.lora.rank:
            return super().export(averaged, frozen, metadata)
        return {"state_dict": rename_lora(averaged), **metadata}

    def select_matrices(self, network: Any) -> list[nn.Parameter]:
        """Return the linear maps of the blocks and of the condition's embedder."""
        hidden = [module for part in (network.blocks, network.y_embedder) for module in part.modules()]
        return [cast(nn.Parameter, module.weight) for module in hidden if isinstance(module, nn.Linear)]

    def compile(self, network: Any) -> None:
        """Compile the blocks, which share one graph."""
        network.compile_blocks()

    def build_warm_up_batch(self, dataset: PanCancerData | SkipBad, count: int) -> PatchBatch:
        """Return zeros, for which nothing is read."""
        config = self.config
        latents = torch.zeros(count, LATENT_CHANNELS, config.input_size, config.input_size)
        condition = Condition(torch.zeros(count, config.model_max_length, config.caption_channels))
        return PatchBatch(latents, condition, names=[""] * count, seeds=[0] * count)

    def check_memory(self, device: torch.device) -> None:
        """Raise InputError for a batch whose latents alone, noisy, predicted and as they are, fill more than all memory."""
        config = self.config
        values = 5 * LATENT_CHANNELS * config.input_size**2 + config.model_max_length * config.caption_channels
        needed, there = 4 * values * config.train_batch_size, total_bytes(device)
        if there is not None and needed > there:
            raise InputError(
                f"train_batch_size {config.train_batch_size}: its latents alone take {needed / 2**30:.0f} GiB, and {device.type} "
                f"has {there / 2**30:.0f}; set a smaller one, and gradient_accumulation_steps to keep the global batch"
            )

    def flops_per_sample(self) -> float | None:
        """Return those of the network; None where a part of it is frozen, or another is trained."""
        if self.config.freeze or self.config.lora.rank or type(self).build_network is not Denoising.build_network:
            return None
        return float(training_flops(preset_config(self.config.model, self.config.model_arguments)))

    def resolve_config(self, work_dir: Path) -> Config:
        """Return the config with absolute paths, so that the run can be opened from any folder."""
        config = self.config
        root, vae = str(config.data_root.resolve()), config.vae_pretrained
        is_below_root = (config.data_root / vae).is_dir()  # then it moves with the data
        if vae not in EMBEDDED_CODECS and not is_below_root and Path(vae).is_dir():
            vae = str(Path(vae).resolve())
        data = dataclasses.replace(config.data, root=root)
        resolved = dataclasses.replace(
            config, work_dir=str(work_dir.resolve()), root=root, data=data, vae_pretrained=vae
        )
        if config.lora.rank and Path(str(config.load_from)).exists():  # which the adapter is opened with
            resolved = dataclasses.replace(resolved, load_from=str(Path(str(config.load_from)).resolve()))
        return resolved

    @property
    def description(self) -> tuple[str, str, str]:
        """Return the network's preset, the size of the samples, and what is predicted."""
        config = self.config
        return config.model, f"samples of {config.image_size} pixels", config.prediction_type
