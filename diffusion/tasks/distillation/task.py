"""Distillation: train a student that samples in a few steps, and without a null pass, what its teacher samples in many with guidance."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from diffusion.condition import Condition
from diffusion.config.distillation_settings import DistillationConfig
from diffusion.data.batch import PatchBatch
from diffusion.model.convert import load_network, load_weights
from diffusion.model.jumps import JumpingNetwork, add_target_embedder
from diffusion.model.lora import LoraSettings, add_lora, student_tensors
from diffusion.model.matching import add_positions, check_metadata, load_into
from diffusion.model.pixart import PixArt
from diffusion.model.student import STUDENT_KEY, TRAJECTORY, Student, read_student
from diffusion.sampling import check_guidance_interval, prepare_scheduler, sample_latents
from diffusion.tasks.denoising.losses import NOISE_STREAM, UNIFORM_STREAM
from diffusion.tasks.denoising.task import Denoising
from diffusion.tasks.distillation.consistency import ConsistencyLosses
from diffusion.tasks.distillation.trajectory import TrajectoryLosses
from diffusion.tasks.distillation.validation import DistillationValidation
from diffusion.training.frozen import FrozenNetwork
from diffusion.training.task import Evaluation
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import to_device
from diffusion.utils.seeds import mix_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.encoders.latents import LatentScale


class DistillationNoise(NamedTuple):
    """What is random about B samples: uniform numbers (B, U) in [0, 1) on the CPU, and normal noise (B, C, H, W)."""

    uniform: torch.Tensor
    noise: torch.Tensor


class Distillation(Denoising):
    """Minimise the loss of trajectory distillation, or of latent consistency, of a student that begins as its teacher.

    Raises InputError for a config without a teacher, or whose teacher's steps do not lie where the student's do.
    """

    name = "distillation"
    losses = ("loss",)

    config: DistillationConfig

    def __init__(self, config: DistillationConfig):
        config.check_teacher()
        super().__init__(config)
        settings, predicts = config.distillation, config.prediction_type
        interval = settings.guidance_interval
        check_guidance_interval(interval, "distillation.guidance_interval")
        self.student = Student(settings.method, settings.guidance, settings.steps, settings.spacing, interval)
        for steps in self.student.steps:  # which are known to be possible before anything is trained
            prepare_scheduler(self.student.solver, steps, spacing=self.student.spacing)
        self.trajectory = TrajectoryLosses(settings, predicts) if settings.method == TRAJECTORY else None
        self.consistency = ConsistencyLosses(settings, predicts)
        self._teacher: FrozenNetwork | None = None

    def build_network(self, load_from: str | None) -> tuple[PixArt, str]:
        """Build the student: its teacher, with an adapter where one is trained, and told the target time of jumps."""
        config, source = self.config, cast(str, self.config.distillation.teacher)
        teacher, file = load_network(source, config.model, config.model_arguments, config.prediction_type)
        student, words = copy.deepcopy(teacher), f"its teacher {file}"
        self._teacher = FrozenNetwork.of(teacher, file)
        student.grad_checkpointing = config.grad_checkpointing
        lora = config.lora
        if lora.rank:
            student.requires_grad_(False)
            add_lora(student, LoraSettings.of(lora.rank, lora.alpha, lora.targets))
            words += ", with a new adapter"
        if self.trajectory is not None:
            add_target_embedder(student)
        student.student = self.student
        if load_from is not None:
            weights = load_weights(load_from, positions=False)
            check_metadata(weights.metadata, student, config.prediction_type, load_from)
            load_into(student, add_positions(student, weights.state_dict), load_from)
            words = str(weights.file or load_from)
        return student, words

    def frozen_networks(self) -> Mapping[str, FrozenNetwork]:
        """Return the teacher."""
        assert self._teacher is not None
        return {"teacher": self._teacher}

    def frozen_source(self) -> Path | None:
        """Return the teacher's weights, where an adapter is trained beside them."""
        return Path(str(self.config.distillation.teacher)) if self.config.lora.rank else None

    @property
    def teacher(self) -> PixArt:
        """Return the teacher."""
        return cast(PixArt, self.frozen_networks()["teacher"].network)

    # ---- the loss

    def draw_randomness(self, batch: PatchBatch) -> DistillationNoise:
        """Draw the noise of a batch, on its device, and uniform numbers that choose jumps or timesteps."""
        seeds, device = cast(list[int], batch.seeds), batch.latents.device
        count = sum(self.student.steps) if self.trajectory is not None else 1
        host, generator = torch.Generator(), torch.Generator(device)
        uniform = torch.stack(
            [torch.rand(count, generator=host.manual_seed(mix_seed(seed, UNIFORM_STREAM))) for seed in seeds]
        )
        noise = torch.empty_like(batch.latents)
        for seed, part in zip(seeds, noise, strict=True):
            generator.manual_seed(mix_seed(seed, NOISE_STREAM))
            torch.randn(part.shape, generator=generator, device=device, out=part)
        return DistillationNoise(uniform, noise)

    def draw_noise(self, randomness: DistillationNoise) -> DistillationNoise:
        """Return the randomness, which depends on nothing that is learned."""
        return randomness

    def compute_losses(
        self, network: nn.Module, batch: PatchBatch, noise: DistillationNoise
    ) -> dict[str, torch.Tensor]:
        """Compute the loss of every sample, (B,)."""
        teacher, null, condition = self.teacher, self.teacher.null_condition, batch.condition
        if self.trajectory is not None:
            path = self.trajectory.path(teacher, noise.noise, condition, null)
            jumps = [self.trajectory.choose_jumps(uniform) for uniform in noise.uniform]

            def jump(x: torch.Tensor, t: torch.Tensor, target: torch.Tensor, y: Condition) -> torch.Tensor:
                return network(x, t, y.tokens, _none_dropped(x), target=target)

            return {"loss": self.trajectory.losses(jump, path, condition, jumps)}

        def predict(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return network(x, t, y, _none_dropped(x))

        clean = self.batch_losses.scale.to_network(batch.latents)
        timestep = to_device(self.consistency.choose_timesteps(noise.uniform[:, 0]), clean.device)
        losses = self.consistency.losses(predict, teacher, clean, noise.noise, timestep, condition, null)
        return {"loss": losses}

    def update(self, steps: Sequence[Any], accelerator: Accelerator) -> None:
        """Learn nothing from a step's losses: no timesteps are sampled by them."""

    # ---- evaluation

    def build_validation(self, accelerator: Accelerator, scale: LatentScale) -> Evaluation:
        """Build the evaluation of the loss on held-out samples."""
        return DistillationValidation(self.config, self, accelerator)

    def sample(
        self,
        network: Any,
        noise: torch.Tensor,
        condition: Condition,
        steps: int,
        guidance: float,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Sample with the student's usual steps, whatever `steps` and `guidance` say, which are a teacher's."""
        student = self.student
        steps = student.usual_steps
        if self.trajectory is not None:
            network = JumpingNetwork(
                network, prepare_scheduler(student.solver, steps, spacing=student.spacing).timesteps.tolist()
            )
        return sample_latents(
            network,
            noise,
            condition,
            steps=steps,
            guidance=1.0,
            algorithm=student.solver,
            spacing=student.spacing,
            generators=generators,
            prediction_type=self.config.prediction_type,
        )

    # ---- files

    def metadata(self, network: PixArt) -> dict[str, Any]:
        """Return the network's architecture, what it predicts, the settings of an adapter, and what the student was made for."""
        return {**super().metadata(network), STUDENT_KEY: self.student.to_dict()}

    def load_weights(self, network: PixArt, saved: Mapping[str, Any], source: Path) -> None:
        """Load a checkpoint's weights. Raises InputError for those of another network, or of another student."""
        before, now = read_student(saved.get(STUDENT_KEY), source), self.student
        if before != now:
            raise InputError(f"{source} is of the student {before}, and the config of {now}: start a new run")
        super().load_weights(network, saved, source)

    def export(
        self, averaged: Mapping[str, torch.Tensor], frozen: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the student's averaged weights; where an adapter is trained, that, and the embedding of jumps beside it."""
        exported = super().export(averaged, frozen, metadata)
        if not self.config.lora.rank:
            return exported
        return {**exported, "state_dict": {**exported["state_dict"], **student_tensors(averaged)}}

    def compile(self, network: PixArt) -> None:
        """Compile the blocks of both networks."""
        network.compile_blocks()
        self.teacher.compile_blocks()

    def resolve_config(self, work_dir: Path) -> DistillationConfig:
        """Return the config with absolute paths, so that the run can be opened from any folder."""
        config = cast(DistillationConfig, super().resolve_config(work_dir))
        teacher = cast(str, config.distillation.teacher)
        if not Path(teacher).exists():  # a network that comes with the package
            return config
        section = dataclasses.replace(config.distillation, teacher=str(Path(teacher).resolve()))
        return dataclasses.replace(config, distillation=section)

    @property
    def description(self) -> tuple[str, str, str]:
        """Return the network's preset, the size of the samples, and what is learned."""
        preset, samples, prediction = super().description
        return preset, samples, f"{self.student.method}, {prediction}"


def _none_dropped(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(x), dtype=torch.bool, device=x.device)
