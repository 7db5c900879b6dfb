"""The log of a run: train_log.log, TensorBoard's curves and pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import torch

from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write

log = logging.getLogger(__name__)


class RunLogger:
    """Writes train_log.log and TensorBoard's events, in the main process only."""

    def __init__(self, work_dir: Path, is_main_process: bool, report_to: str, step: int, losses: Sequence[str]):
        self.writer, self.first = None, None
        self.work_dir, self.losses = work_dir, losses
        if not is_main_process:
            return
        work_dir.mkdir(parents=True, exist_ok=True)
        log_to(work_dir / "train_log.log")
        if report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            # what was logged after the last save is of steps that come again
            self.writer = SummaryWriter(work_dir / "tensorboard", purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int, total_steps: int, epoch: float) -> None:
        """Log the training's values since the last call: a line, and points of the curves `train/<name>`."""
        now = time.perf_counter()
        if self.first is None:  # steps before this process started cost it no time
            self.first = step, now
        done = step - self.first[0]
        left = timedelta(seconds=round((now - self.first[1]) / done * (total_steps - step))) if done else "?"
        log.info(
            "step %d/%d, epoch %.3f: %s, grad norm %.3f, lr %.2e, %.1f samples/s, "
            "data wait %.1f %%, memory %.2f GB, left %s",
            *(step, total_steps, epoch, self.format_losses(values), values["grad_norm"], values["lr"]),
            *(values["samples_per_second"], 100 * values["data_wait"], values["memory_gb"], left),
        )
        self.curves("train", values, step)

    def format_losses(self, values: Mapping[str, float]) -> str:
        """Format the losses as in `loss 1.0000 (mse 0.9000, vb 0.1000)`."""
        first, *rest = (f"{name} {values[name]:.4f}" for name in self.losses)
        return f"{first} ({', '.join(rest)})" if rest else first

    def curves(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add points to TensorBoard's curves `<group>/<name>`."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None:
        """Write a picture (3, H, W) in [0, 1] to TensorBoard and as a PNG in the work dir."""
        from torchvision.utils import save_image

        with atomic_write(self.work_dir / name / f"step_{step:08d}.png") as temporary:
            save_image(pixels, temporary, format="PNG")
        if self.writer is not None:
            self.writer.add_image(name, pixels, step)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self.writer is not None:
            self.writer.close()


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


def check_reports(report_to: str) -> None:
    """Raise InputError where what writes the curves is not installed."""
    if report_to == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: F401
        except ImportError as error:
            raise InputError(f"report_to tensorboard: {error}; install it, or set report_to=none") from None
