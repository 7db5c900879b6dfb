"""Where a run's curves and pictures go: TensorBoard, Weights & Biases, MLflow, Trackio, through accelerate's trackers.

Each knows a run by an identity that the work dir keeps: a run that is resumed goes on with the same curves.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.text import read_json

log = logging.getLogger(__name__)

PROJECT = "pixcell"  # that runs are listed under, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another
IDENTITIES_FILE = "trackers.json"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run. step: that it goes on from; settings: to be noted of a new one, by dotted keys."""

    work_dir: Path
    step: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people call the run."""
        return self.work_dir.resolve().name


class Tracker(ABC):
    """One place that curves and pictures go to. `tracker` is accelerate's, which writes in the main process alone.

    package: what is to be installed, module: what it is imported as. is_own: whether it writes files of ours, whose errors
    end the run; those of others do not.
    """

    package: ClassVar[str]
    module: ClassVar[str]
    is_own: ClassVar[bool] = False

    def __init__(self, run: TrackedRun, identity: str | None):
        self.identity = identity
        self.client: Any = importlib.import_module(self.module)
        self.tracker: Any = self.build(run)
        self.tracker.start()
        if identity is None:
            self.identify(run)

    @abstractmethod
    def build(self, run: TrackedRun) -> Any:
        """Make accelerate's tracker of the run that `identity` is, or of a new one."""

    def identify(self, run: TrackedRun) -> None:
        """Note the settings of a new run, once it has begun, and by what to find it again."""
        self.tracker.store_init_configuration(flatten_settings(run.settings))

    def curves(self, values: Mapping[str, float], step: int) -> None:
        """Add points to curves."""
        self.tracker.log(dict(values), step=step)

    @abstractmethod
    def picture(self, name: str, pixels: torch.Tensor, file: Path, step: int) -> None:
        """Add a picture, which is there as pixels (3, H, W) in [0, 1] and as a PNG."""

    def close(self) -> None:
        """Write what is not written yet."""
        self.tracker.finish()


class TensorBoard(Tracker):
    """Event files in the work dir, which say themselves what they are of."""

    package, module, is_own = "tensorboard", "torch.utils.tensorboard", True

    def build(self, run: TrackedRun) -> Any:
        from accelerate.tracking import TensorBoardTracker

        # what was logged after the last save is of steps that come again
        return TensorBoardTracker("tensorboard", run.work_dir, purge_step=run.step + 1)

    def identify(self, run: TrackedRun) -> None: ...

    def picture(self, name: str, pixels: torch.Tensor, file: Path, step: int) -> None:
        self.tracker.tracker.add_image(name, pixels, step)


class WandB(Tracker):
    """A run of Weights & Biases; WANDB_MODE=offline keeps it below the work dir, to be sent later by `wandb sync`."""

    package = module = "wandb"

    def __init__(self, run: TrackedRun, identity: str | None):
        super().__init__(run, identity)
        self.tracker.tracker.define_metric("step", hidden=True)
        self.tracker.tracker.define_metric("*", step_metric="step")

    def build(self, run: TrackedRun) -> Any:
        from accelerate.tracking import WandBTracker

        self.id = self.identity or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return WandBTracker(project, id=self.id, resume="allow", name=run.name, dir=str(run.work_dir))

    def identify(self, run: TrackedRun) -> None:
        super().identify(run)
        self.identity = self.id

    def curves(self, values: Mapping[str, float], step: int) -> None:
        self._log(values, step)

    def picture(self, name: str, pixels: torch.Tensor, file: Path, step: int) -> None:
        self._log({name: self.client.Image(str(file))}, step)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        """Log values over a step of our own: wandb's never goes back, as a run does that resumes an earlier state."""
        self.tracker.log({**values, "step": step})


class MLflow(Tracker):
    """A run of MLflow: where MLFLOW_TRACKING_URI says, else in a database in the work dir."""

    package = module = "mlflow"

    def build(self, run: TrackedRun) -> Any:
        from accelerate.tracking import MLflowTracker

        folder, pictures = run.work_dir.resolve(), None
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            self.client.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            pictures = (folder / "mlflow").as_uri()
        return MLflowTracker(PROJECT, logging_dir=pictures, run_id=self.identity, run_name=run.name)

    def identify(self, run: TrackedRun) -> None:
        super().identify(run)
        self.identity = self.tracker.tracker.info.run_id

    def picture(self, name: str, pixels: torch.Tensor, file: Path, step: int) -> None:
        from PIL import Image

        with Image.open(file) as image:
            self.client.log_image(image, key=name, step=step)


class Trackio(Tracker):
    """A run of Trackio, in a database of its own on this machine (TRACKIO_DIR) or in a Space of the hub (TRACKIO_SPACE_ID)."""

    package = module = "trackio"

    def build(self, run: TrackedRun) -> Any:
        from accelerate.tracking import TrackioTracker

        self.run_name = self.identity or f"{run.name}-{uuid.uuid4().hex[:8]}"  # by which it is found again
        return TrackioTracker(PROJECT, name=self.run_name, resume="allow")

    def identify(self, run: TrackedRun) -> None:
        super().identify(run)
        self.identity = self.run_name

    def picture(self, name: str, pixels: torch.Tensor, file: Path, step: int) -> None:
        self.tracker.log({name: self.client.Image(str(file))}, step=step)


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError where the package of a tracker is not installed, or does not load."""
    for name in names:
        kind = TRACKERS[name]
        try:
            importlib.import_module(kind.module)
        except ImportError as error:
            raise InputError(
                f"report_to {name}: {error}; pip install {kind.package}, or leave {name} out (none alone: set report_to=none)"
            ) from None


def start_trackers(names: Sequence[str], run: TrackedRun, resumed: bool) -> list[Tracker]:
    """Start trackers, in the main process, and note what finds their runs again. resumed: the work dir's own run goes on.

    Raises InputError for one that does not start.
    """
    file = run.work_dir / IDENTITIES_FILE
    identities: dict[str, str] = {}
    if resumed:
        with contextlib.suppress(MissingError):  # of a run that TensorBoard alone has followed
            identities = read_json(file)
    started: list[Tracker] = []
    for name in names:
        try:
            started.append(TRACKERS[name](run, identities.get(name)))
        except Exception as error:  # anything, of libraries, servers and accounts
            for tracker in started:
                tracker.close()
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"report_to {name} does not start ({type(error).__name__}: {reason}); see to its account or server, work "
                f"offline if it can, or leave it out"
            ) from error
        if (identity := started[-1].identity) is not None:
            identities[name] = identity
    if identities:
        atomic_write_bytes(file, json.dumps(identities, indent=1).encode() + b"\n")
    elif not resumed:
        file.unlink(missing_ok=True)
    return started


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted keys, as numbers, texts and None, which trackers take."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
    return flat
