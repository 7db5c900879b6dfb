"""What a person sees of a run: the log, TensorBoard's curves and pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion.config.settings import Config
from diffusion.data.batch import BadItem, PatchBatch, collate
from diffusion.data.sampler import Draw
from diffusion.formats import DEFAULT_SOLVER
from diffusion.guidance import Network
from diffusion.sampling import image_generator, initial_noise, prepare_scheduler, sample_latents
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write
from diffusion.utils.memory import peak_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffusion.data.datasets.pan_cancer import PanCancerData, SkipBad
    from diffusion.encoders.latents import LatentCodec

log = logging.getLogger(__name__)

LOSSES = ("loss", "mse", "vb")
FEW_ITEMS = 1000  # taken for read from the start: a share of a few items says nothing


class Meter:
    """Means over the steps since the last reading, and over all processes; kept on the device until read."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._reset()

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Count the losses (B,) of one batch."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach().mean()
        self.batches += 1

    def end_step(self, waited: float) -> None:
        """Count an optimizer step, and the seconds that its data was waited for."""
        self.steps, self.waited = self.steps + 1, self.waited + waited

    def read(self, global_batch: int) -> dict[str, float]:
        """Mean losses, samples a second, the share of time spent waiting for data, memory; starts anew.

        Losses are no numbers when every step since the last reading was skipped.
        """
        means = torch.stack([self.sums.get(name, torch.zeros((), device=self.accelerator.device)) for name in LOSSES])
        means = self.accelerator.reduce(means / self.batches if self.batches else means * float("nan"), "mean").tolist()
        seconds = time.perf_counter() - self.since
        values = dict(zip(LOSSES, means, strict=True))
        values |= {"samples_per_second": self.steps * global_batch / seconds, "data_wait": self.waited / seconds}
        values |= {"memory_gb": peak_memory(self.accelerator.device) / 1e9}
        self._reset()
        return values

    def start_clock(self) -> None:
        """Begin to count the time of the rates."""
        self.since = time.perf_counter()

    def exclude_time(self, seconds: float) -> None:
        """Have the rates not know of a time in which nothing was trained."""
        self.since += seconds

    def state_dict(self) -> dict[str, Any]:
        """What has been counted since the last reading, but for the time."""
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "batches": self.batches}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.sums = {name: total.to(self.accelerator.device) for name, total in saved["sums"].items()}
        self.batches = saved["batches"]

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.batches, self.steps, self.waited, self.since = 0, 0, 0.0, time.perf_counter()


def redistribute_meters(meters: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """States of the meters of some processes as one of each of `count` others: their mean is the same."""
    sums = {name: sum(meter["sums"][name] for meter in meters) / count for name in meters[0]["sums"]}
    return {"sums": sums, "batches": sum(meter["batches"] for meter in meters) / count}


def peak_memory(device: torch.device) -> int:
    """The most bytes that the process has held: on a GPU what torch has allocated there, else what the system gave it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()


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
        self._check()
        return {"bad_items": self.bad}

    def state_dict(self) -> dict[str, int]:
        """The counts; after `settle`, the same in all processes."""
        return {"bad": self.bad, "read": self.read}

    def load_state_dict(self, saved: Mapping[str, int]) -> None:
        self.bad, self.read = saved["bad"], saved["read"]

    def _check(self) -> None:
        if self.bad > self.limit * max(self.read, FEW_ITEMS):
            raise InputError(
                f"{self.bad} of {self.read} items could not be read, more than max_bad_fraction {self.limit:g} "
                f"(of at least {FEW_ITEMS}); the log names them. The weights are those of the last checkpoint"
            )


class RunLogger:
    """Writes train_log.log and TensorBoard's events, in the main process only."""

    def __init__(self, work_dir: Path, is_main_process: bool, report_to: str, step: int):
        self.writer, self.first = None, None
        self.work_dir = work_dir
        if not is_main_process:
            return
        work_dir.mkdir(parents=True, exist_ok=True)
        log_to(work_dir / "train_log.log")
        if report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            # what was logged after the last save is of steps that come again
            self.writer = SummaryWriter(work_dir / "tensorboard", purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int, total_steps: int, epoch: float) -> None:
        now = time.perf_counter()
        if self.first is None:  # steps before this process started cost it no time
            self.first = step, now
        done = step - self.first[0]
        left = timedelta(seconds=round((now - self.first[1]) / done * (total_steps - step))) if done else "?"
        log.info(
            "step %d/%d, epoch %.3f: loss %.4f (mse %.4f, vb %.4f), grad norm %.3f, lr %.2e, %.1f samples/s, "
            "data wait %.1f %%, memory %.2f GB, left %s",
            *(step, total_steps, epoch, values["loss"], values["mse"], values["vb"], values["grad_norm"], values["lr"]),
            *(values["samples_per_second"], 100 * values["data_wait"], values["memory_gb"], left),
        )
        self.curves("train", values, step)

    def validation(self, losses: Mapping[str, float], step: int) -> None:
        log.info("step %d: validation loss %.4f (mse %.4f, vb %.4f)", step, *(losses[name] for name in LOSSES))
        self.curves("validation", losses, step)

    def scores(self, values: Mapping[str, float], about: str, step: int) -> None:
        told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        log.info("step %d: %s: %s", step, about, told or "not finite")
        self.curves("evaluation", values, step)

    def curves(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Points of TensorBoard's curves `<group>/<name>`."""
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


def check_reports(config: Config) -> None:
    """Raise InputError where what writes the curves is not installed."""
    if config.report_to == "tensorboard":
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: F401
        except ImportError as error:
            raise InputError(f"report_to tensorboard: {error}; install it, or set report_to=none") from None


def check_grid(config: Config, dataset: PanCancerData | SkipBad) -> None:
    """Raise InputError for steps that the sample grids' solver cannot take, and conditions that cannot be read."""
    if config.sample_grid.count:
        prepare_scheduler(DEFAULT_SOLVER, config.sample_grid.steps)
        grid_batch(dataset, config)


def grid_batch(dataset: PanCancerData | SkipBad, config: Config) -> PatchBatch:
    """Read the conditions of the sample grids: spread evenly over the data set."""
    count = config.sample_grid.count
    return collate([dataset[Draw(i * len(dataset) // count, config.seed)] for i in range(count)])


def sample_grid(
    network: Network,
    null_tokens: torch.Tensor,
    dataset: PanCancerData | SkipBad,
    codec: LatentCodec | None,
    config: Config,
) -> torch.Tensor | None:
    """Samples for the same conditions and the same noise at every call: a picture (3, H, W) in [0, 1].

    The conditions are spread evenly over the data set; null_tokens (L, D) says where the network is. Without a codec
    nothing is decoded: for processes that only share the network.
    """
    from torchvision.utils import make_grid

    device, seed, settings = null_tokens.device, config.seed, config.sample_grid
    batch = grid_batch(dataset, config)
    noise = initial_noise([image_generator(seed, i) for i in range(len(batch.names))], tuple(batch.latents.shape[1:]))
    latents = sample_latents(
        network,
        noise.to(device),
        batch.tokens.to(device),
        null_tokens,
        steps=settings.steps,
        guidance=settings.guidance,
        algorithm=DEFAULT_SOLVER,
        prediction_type=config.prediction_type,
    )
    if codec is None:
        return None
    pixels = torch.cat(
        [codec.decode(latent[None]) for latent in latents]
    )  # one by one: a large VAE's activations are large
    return make_grid((pixels.cpu() + 1) / 2, nrow=4)
