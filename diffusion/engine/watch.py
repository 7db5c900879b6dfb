"""What a person sees of a run: the log, TensorBoard's curves and pictures."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffusion.config import Config
from diffusion.data.batch import BadItem, PatchBatch, collate
from diffusion.data.sampler import Draw
from diffusion.errors import InputError
from diffusion.guidance import Network
from diffusion.sampling import image_generator, initial_noise, sample_latents

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad
    from diffusion.encoders.latents import LatentCodec

log = logging.getLogger(__name__)

FEW_ITEMS = 1000  # taken for read from the start: a share of a few items says nothing
GRID_ALGORITHM = "dpm-solver"  # of sample grids


class Meter:
    """Means over the steps since the last reading, and over all processes; kept on the device until read."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._reset()

    def add(self, losses: Mapping[str, torch.Tensor], waited: float) -> None:
        """Count one batch: its losses (B,) and the seconds that its data was waited for."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach().mean()
        self.batches += 1
        self.waited += waited
        self.steps += self.accelerator.sync_gradients

    def read(self, global_batch: int) -> dict[str, float]:
        """Mean losses, samples a second, and the share of time spent waiting for data; starts anew."""
        names = list(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.batches
        means = self.accelerator.reduce(means, "mean").tolist()
        seconds = time.perf_counter() - self.since
        values = dict(zip(names, means, strict=True))
        values |= {"samples_per_second": self.steps * global_batch / seconds, "data_wait": self.waited / seconds}
        self._reset()
        return values

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.batches, self.steps, self.waited, self.since = 0, 0, 0.0, time.perf_counter()


class BadItems:
    """Items that could not be read: counted over all processes, each patch named once in the log.

    Raises InputError when they are more than `limit` of what was read.
    """

    def __init__(self, limit: float):
        self.limit, self.bad, self.read = limit, 0, 0
        self._named: set[str] = set()
        self._new: list[BadItem] = []
        self._new_read = 0

    def add(self, batch: PatchBatch) -> None:
        """Count one batch of this process."""
        self._new += batch.bad
        self._new_read += len(batch.names) + len(batch.bad)

    def settle(self) -> dict[str, float]:
        """Put together what all processes met since the last call; to be called by all of them."""
        from accelerate.utils import gather_object

        for new, read in gather_object([(self._new, self._new_read)]):
            self.bad, self.read = self.bad + len(new), self.read + read
            for item in new:
                if item.name not in self._named:
                    log.warning("skipped %s: %s", item.name, item.reason)
                    self._named.add(item.name)
        self._new, self._new_read = [], 0
        if self.bad > self.limit * max(self.read, FEW_ITEMS):
            raise InputError(
                f"{self.bad} of {self.read} items could not be read, more than max_bad_fraction {self.limit:g} "
                f"(of at least {FEW_ITEMS}); the log names them. The weights are those of the last checkpoint"
            )
        return {"bad_items": self.bad}


class Watch:
    """Writes train_log.log and TensorBoard's events, in the main process only."""

    def __init__(self, work_dir: Path, is_main_process: bool, report_to: str):
        self.writer, self.first = None, None
        self.work_dir = work_dir
        if not is_main_process:
            return
        work_dir.mkdir(parents=True, exist_ok=True)
        log_to(work_dir / "train_log.log")
        if report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(work_dir / "tensorboard")

    def scalars(self, values: Mapping[str, float], step: int, total_steps: int, epoch: float) -> None:
        now = time.perf_counter()
        if self.first is None:  # steps before this process started cost it no time
            self.first = step, now
        done = step - self.first[0]
        left = timedelta(seconds=round((now - self.first[1]) / done * (total_steps - step))) if done else "?"
        log.info(
            "step %d/%d, epoch %.3f: loss %.4f (mse %.4f, vb %.4f), grad norm %.3f, lr %.2e, %.1f samples/s, data wait %.1f %%, left %s",
            *(step, total_steps, epoch, values["loss"], values["mse"], values["vb"], values["grad_norm"], values["lr"]),
            *(values["samples_per_second"], 100 * values["data_wait"], left),
        )
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"train/{name}", value, step)

    def picture(self, name: str, pixels: torch.Tensor, step: int) -> None:
        """A picture (3, H, W) in [0, 1], into TensorBoard and as a PNG in the work dir."""
        from torchvision.utils import save_image

        folder = self.work_dir / name
        folder.mkdir(exist_ok=True)
        save_image(pixels, folder / f"step_{step:08d}.png")
        if self.writer is not None:
            self.writer.add_image(name, pixels, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def processor(accelerator: Accelerator) -> str:
    """The device; of a CPU also how much of it is used, since accelerate gives a process one thread unless told."""
    device, threads, cores = accelerator.device, torch.get_num_threads(), os.cpu_count() or 1
    if device.type != "cpu":
        return str(device)
    share = max(1, cores // accelerator.num_processes)
    advice = f"; --num_cpu_threads_per_process {share} of accelerate launch takes all" if threads < share else ""
    return f"cpu, {threads} threads a process of {cores} cores{advice}"


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


def sample_grid(
    network: Network,
    null_tokens: torch.Tensor,
    dataset: PanCancerData | SkipBad,
    codec: LatentCodec,
    config: Config,
) -> torch.Tensor:
    """Samples for the same conditions and the same noise at every call: a picture (3, H, W) in [0, 1].

    The conditions are spread evenly over the data set; null_tokens (L, D) says where the network is.
    """
    from torchvision.utils import make_grid

    device, seed, settings = null_tokens.device, config.seed, config.sample_grid
    count = settings.count
    batch = collate([dataset[Draw(i * len(dataset) // count, seed)] for i in range(count)])
    noise = initial_noise([image_generator(seed, i) for i in range(len(batch.names))], tuple(batch.latents.shape[1:]))
    latents = sample_latents(
        network,
        noise.to(device),
        batch.tokens.to(device),
        null_tokens,
        steps=settings.steps,
        guidance=settings.guidance,
        algorithm=GRID_ALGORITHM,
        prediction_type=config.prediction_type,
    )
    pixels = torch.cat(
        [codec.decode(latent[None]) for latent in latents]
    )  # one by one: a large VAE's activations are large
    return make_grid((pixels.cpu() + 1) / 2, nrow=4)
