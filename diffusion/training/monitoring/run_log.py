"""The log of a run: train_log.log, and curves and pictures, which go to trackers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from diffusion.training.monitoring.throughput import describe_throughput
from diffusion.training.monitoring.trackers import TrackedRun, Tracker, start_trackers
from diffusion.utils.files import atomic_write

log = logging.getLogger(__name__)


class RunLogger:
    """Writes train_log.log, and curves and pictures to trackers, in the main process only."""

    def __init__(self, work_dir: Path, is_main_process: bool, losses: Sequence[str]):
        self.first: tuple[int, float] | None = None
        self.trackers: list[Tracker] = []
        self.work_dir, self.losses, self.failed = work_dir, losses, set[str]()
        if is_main_process:
            work_dir.mkdir(parents=True, exist_ok=True)
            log_to(work_dir / "train_log.log")

    def start_trackers(
        self, names: Sequence[str], step: int, settings: Mapping[str, Any] | None = None, resumed: bool = False
    ) -> None:
        """Start trackers; in the main process only. step: that the run goes on from, resumed: as the work dir's own.

        Raises InputError for a tracker that does not start.
        """
        self.trackers = start_trackers(names, TrackedRun(self.work_dir, step, settings or {}), resumed)

    def scalars(self, values: Mapping[str, float], step: int, total_steps: int, epoch: float) -> None:
        """Log the training's values since the last call: a line, and points of the curves `train/<name>`."""
        now = time.perf_counter()
        if self.first is None:  # steps before this process started cost it no time
            self.first = step, now
        done = step - self.first[0]
        left = timedelta(seconds=round((now - self.first[1]) / done * (total_steps - step))) if done else "?"
        log.info(
            "step %d/%d, epoch %.3f: %s, grad norm %.3f, lr %.2e, %.1f samples/s%s, "
            "data wait %.1f %%, memory %.2f GB, left %s",
            *(step, total_steps, epoch, self.format_losses(values), values["grad_norm"], values["lr"]),
            *(values["samples_per_second"], describe_throughput(values)),
            *(100 * values["data_wait"], values["memory_gb"], left),
        )
        self.curves("train", values, step)

    def format_losses(self, values: Mapping[str, float]) -> str:
        """Format the losses as in `loss 1.0000 (mse 0.9000, vb 0.1000)`."""
        first, *rest = (f"{name} {values[name]:.4f}" for name in self.losses)
        return f"{first} ({', '.join(rest)})" if rest else first

    def curves(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add points to the trackers' curves `<group>/<name>`."""
        named = {f"{group}/{name}": value for name, value in values.items()}
        for tracker in self.trackers:
            self._attempt(tracker, lambda tracker: tracker.curves(named, step))

    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None:
        """Write a picture (3, H, W) in [0, 1] to the trackers and as a PNG in the work dir."""
        from torchvision.utils import save_image

        file = self.work_dir / name / f"step_{step:08d}.png"
        with atomic_write(file) as temporary:
            save_image(pixels, temporary, format="PNG")
        for tracker in self.trackers:
            self._attempt(tracker, lambda tracker: tracker.picture(name, pixels, file, step))

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self.trackers:
            self._attempt(tracker, lambda tracker: tracker.close())

    def _attempt(self, tracker: Tracker, call: Callable[[Tracker], None]) -> None:
        """Have a tracker do something; of a server that is away the log tells once, and training goes on."""
        try:
            call(tracker)
        except Exception as error:
            if tracker.is_own:
                raise
            if tracker.package not in self.failed:
                reason = str(error).strip().partition("\n")[0]
                log.warning("%s lacks what it was to get (%s: %s)", tracker.package, type(error).__name__, reason)
            self.failed.add(tracker.package)


def log_to(path: Path) -> None:
    """Send the package's log to a file too, and no longer to that of a run before this one in the same process."""
    logger = logging.getLogger("diffusion")
    for old in [handler for handler in logger.handlers if handler.name == "run"]:
        logger.removeHandler(old)
        old.close()
    handler = logging.FileHandler(path)
    handler.name = "run"
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
