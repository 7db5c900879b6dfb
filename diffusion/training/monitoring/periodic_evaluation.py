"""A task's evaluations on the way, computed with the averaged weights."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from diffusion.formats import CHECKPOINTS_DIR
from diffusion.optim.ema import EMA
from diffusion.training.checkpoints.checkpoint import EVALUATED_FILE
from diffusion.training.monitoring.run_log import RunLogger
from diffusion.training.state import RunState
from diffusion.training.task import Evaluation
from diffusion.utils.files import atomic_write_bytes


@dataclass(frozen=True)
class PeriodicEvaluation:
    """Evaluations, and the steps after which they are due. For all processes together.

    saved_steps: when those are due that follow the saves.
    """

    evaluations: Sequence[Evaluation]
    logger: RunLogger
    work_dir: Path
    saved_steps: set[int]

    def __contains__(self, step: int) -> bool:
        return step in self.saved_steps or any(self._is_due(evaluation, step) for evaluation in self.evaluations)

    def __call__(self, run: RunState) -> None:
        """Compute what is due at this step, and note in the work dir that it is done."""
        begun, accelerator = time.perf_counter(), run.accelerator
        with averaged_weights(run.model, run.ema):
            for evaluation in self.evaluations:
                if self._is_due(evaluation, run.step):
                    evaluation(run.model, self.logger, run.step)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and run.step in self.saved_steps:  # no run is resumed at others
            atomic_write_bytes(self.work_dir / CHECKPOINTS_DIR / EVALUATED_FILE, f"{run.step}\n".encode())
        run.meter.exclude_time(time.perf_counter() - begun)

    def _is_due(self, evaluation: Evaluation, step: int) -> bool:
        return step in (self.saved_steps if evaluation.steps is None else evaluation.steps)


@contextlib.contextmanager
def averaged_weights(model: nn.Module, ema: EMA) -> Iterator[None]:
    """Give the network its averaged weights, in eval mode, for a block; without a second copy of it."""
    training = model.training
    model.eval()
    ema.swap(model)
    try:
        yield
    finally:
        ema.swap(model)
        model.train(training)
