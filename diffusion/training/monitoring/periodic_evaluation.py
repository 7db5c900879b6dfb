"""What a run is looked at by, with its averaged weights: held-out loss, sample grids, scores of samples."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad
from diffusion.formats import CHECKPOINTS_DIR
from diffusion.model.pixart import PixArt
from diffusion.optim.ema import EMA
from diffusion.training.checkpoints.checkpoint import EVALUATED_FILE
from diffusion.training.monitoring.run_log import RunLogger, sample_grid
from diffusion.training.monitoring.sample_scores import SampleScores
from diffusion.training.monitoring.validation import Validation
from diffusion.training.state import RunState
from diffusion.utils.files import atomic_write_bytes

if TYPE_CHECKING:
    from diffusion.encoders.latents import LatentCodec


@dataclass(frozen=True)
class PeriodicEvaluation:
    """What is looked at with the averaged weights, and after which steps. For all processes together."""

    watch: RunLogger
    work_dir: Path
    dataset: PanCancerData | SkipBad
    codec: LatentCodec | None
    validation: Validation | None
    scores: SampleScores | None
    at_saves: set[int]  # validation and sample grids
    scored: set[int]

    def __contains__(self, step: int) -> bool:
        return step in self.at_saves or step in self.scored

    def __call__(self, run: RunState) -> None:
        """Validate, sample and score as is due at this step; note that this step's look is done."""
        begun, accelerator = time.perf_counter(), run.accelerator
        with averaged(run.model, run.ema):
            if run.step in self.at_saves:
                self.validate_and_sample(run)
            if self.scores is not None and run.step in self.scored:
                found = self.scores(run.model)
                if found is not None:
                    about = f"{run.config.evaluation.count} samples, by {self.scores.embedder.name}"
                    self.watch.scores(found.values, about, run.step)
                    self.watch.picture("evaluation", found.picture, run.step)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and run.step in self.at_saves:  # at others no run begins again
            atomic_write_bytes(self.work_dir / CHECKPOINTS_DIR / EVALUATED_FILE, f"{run.step}\n".encode())
        run.meter.exclude_time(time.perf_counter() - begun)

    def validate_and_sample(self, run: RunState) -> None:
        accelerator, config = run.accelerator, run.config
        if self.validation is not None:
            self.watch.validation(self.validation(run.model), run.step)
        if config.sample_grid.count and (accelerator.is_main_process or accelerator.is_fsdp2):  # all run it, or one
            codec = self.codec if accelerator.is_main_process else None
            pixels = sample_grid(run.model, run.model.null_condition, self.dataset, codec, config)
            if accelerator.is_main_process:
                self.watch.picture("samples", pixels, run.step)


@contextlib.contextmanager
def averaged(model: PixArt, ema: EMA) -> Iterator[None]:
    """In the block, the network has its averaged weights and is in eval mode; without a second copy of it."""
    training = model.training
    model.eval()
    ema.swap(model)
    try:
        yield
    finally:
        ema.swap(model)
        model.train(training)
