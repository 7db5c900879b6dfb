"""Saving without keeping the training waiting: a copy to host memory, and a thread that writes it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffusion.formats import CHECKPOINTS_DIR
from diffusion.training.checkpoints.checkpoint import NO_ORIGIN, mark_latest, rotate, write_checkpoint
from diffusion.training.checkpoints.posthoc_ema import save_snapshots
from diffusion.training.parallel.distributed import on_main
from diffusion.training.state import RunState
from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


class HostCopy:
    """Copies trees of tensors to host memory that is kept from one copy to the next, and pinned where a GPU reads from."""

    def __init__(self):
        self._buffers: dict[tuple, torch.Tensor] = {}

    def __call__(self, tree: Any) -> Any:
        """Return the tree with its tensors as host copies; plain values as they are. The copies last until the next call."""
        copied = self._copy(tree, ())
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copied

    def _copy(self, tree: Any, place: tuple) -> Any:
        if isinstance(tree, torch.Tensor):
            return self._buffer(tree, place).copy_(tree.detach(), non_blocking=tree.is_cuda)
        if isinstance(tree, dict):
            return {name: self._copy(part, (*place, name)) for name, part in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(self._copy(part, (*place, i)) for i, part in enumerate(tree))
        return tree

    def _buffer(self, tensor: torch.Tensor, place: tuple) -> torch.Tensor:
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[place] = buffer
        return buffer


class Saver:
    """Writes states of a run one after the other, in the main process; every method is for all processes together.

    Leaving its `with` block waits for the last. keep_last, keep_every: as `checkpoint.rotate`. named: as
    `checkpoint.mark_latest`. snapshots: steps whose averages of power-function profile are kept, too.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        work_dir: Path,
        keep_last: int | None,
        keep_every: int | None,
        named: Mapping[str, str | None] = NO_ORIGIN,
        snapshots: Container[int] = (),
    ):
        self.accelerator, self.work_dir, self.named = accelerator, work_dir, named
        self.keep_last, self.keep_every, self.snapshots = keep_last, keep_every, snapshots
        self._host_copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._has_saved = False
        self.pause = 0.0  # seconds that training stood still for the newest save

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_) -> None:
        if self._thread is not None:  # an error is on its way; otherwise `wait` has been called
            self._thread.join()

    def save(self, run: RunState) -> None:
        """Copy a run's state and write it in the background. Waits for the one before; raises as `wait`."""
        begun = time.perf_counter()
        self.wait()
        state = run.state_dict()
        if self.accelerator.is_main_process:
            copied = self._host_copy(state)
            self.pause = time.perf_counter() - begun
            self._thread = threading.Thread(target=self._write, args=(copied, run, run.metadata()), name="checkpoint")
            self._thread.start()

    def wait(self) -> None:
        """Wait for the save in progress. Raises InputError in all processes when it failed, with what to do."""
        on_main(self.accelerator, self._join)

    @property
    def failed(self) -> bool:
        """Tell whether the newest save failed, as far as this process knows."""
        return self._error is not None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise InputError(
                f"the state could not be saved ({error}); the checkpoint before is whole. "
                "Make room or mend the disk, and start the same command again: it goes on from there"
            ) from error

    def _write(self, state: dict[str, Any], run: RunState, metadata: Mapping[str, Any]) -> None:
        begun = time.perf_counter()
        try:
            run.frozen.save(self.work_dir / CHECKPOINTS_DIR, verify=not self._has_saved)
            self._has_saved = True
            path = write_checkpoint(state, self.work_dir, run.export(state, metadata))
            if state["step"] in self.snapshots:
                frozen = {} if run.frozen.source is not None else run.frozen.tensors
                save_snapshots(state["power_ema"], metadata, frozen, self.work_dir)
            mark_latest(path, self.named)
            rotate(self.work_dir, state["step"], self.keep_last, self.keep_every)
        except Exception as error:  # raised by wait(): nobody catches a thread's own
            self._error = error
            return
        log.info(
            "saved %s: training paused for %.0f ms, written in %.1f s",
            *(path.name, 1000 * self.pause, time.perf_counter() - begun),
        )
