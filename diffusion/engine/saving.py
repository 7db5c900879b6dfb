"""Saving without keeping the training waiting: a copy to host memory, and a thread that writes it."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import torch

from diffusion.engine.checkpoint import rotate, write_checkpoint
from diffusion.engine.posthoc import save_snapshots
from diffusion.errors import InputError

log = logging.getLogger(__name__)


class HostCopy:
    """Copies trees of tensors to host memory that is kept from one copy to the next, and pinned where a GPU reads from."""

    def __init__(self):
        self._buffers: dict[tuple, torch.Tensor] = {}

    def __call__(self, tree: Any) -> Any:
        """The tree with its tensors as host copies; plain values as they are. The copies last until the next call."""
        copied = self._copy(tree, ())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, tree: Any, place: tuple) -> Any:
        if isinstance(tree, torch.Tensor):
            return self._buffer(tree, place).copy_(tree.detach(), non_blocking=True)
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
    """Writes states of a run one after the other; leaving its `with` block waits for the last.

    keep_last, keep_every: as `checkpoint.rotate`. snapshot_steps: write averages for later choice at its multiples.
    """

    def __init__(
        self, work_dir: Path, keep_last: int | None, keep_every: int | None, snapshot_steps: int | None = None
    ):
        self.work_dir, self.keep_last, self.keep_every = work_dir, keep_last, keep_every
        self.snapshot_steps = snapshot_steps
        self._host_copy = HostCopy()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.pauses: list[float] = []  # seconds that the training stood still for each save

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:  # an error is on its way already
            self._thread.join()

    def save(self, state: dict[str, Any]) -> None:
        """Copy a state and write it in the background. Waits for the one before; raises InputError when that failed."""
        begun = time.perf_counter()
        self.wait()
        copied = self._host_copy(state)
        self.pauses.append(time.perf_counter() - begun)
        self._thread = threading.Thread(target=self._write, args=(copied,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save in progress. Raises InputError when it failed, with what to do."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise InputError(
                f"the state could not be saved ({error}); the checkpoint before is whole. "
                "Make room or mend the disk, and start the same command again: it goes on from there"
            ) from error

    @property
    def failed(self) -> bool:
        return self._error is not None

    def _write(self, state: dict[str, Any]) -> None:
        begun = time.perf_counter()
        try:
            path = write_checkpoint(state, self.work_dir)
            if self.snapshot_steps and state["step"] and state["step"] % self.snapshot_steps == 0:
                save_snapshots(state, self.work_dir)
            rotate(self.work_dir, state["step"], self.keep_last, self.keep_every)
        except Exception as error:  # told by wait(); a thread has nobody to raise to
            self._error = error
            return
        log.info(
            "saved %s: training paused for %.0f ms, written in %.1f s",
            *(path.name, 1000 * self.pauses[-1], time.perf_counter() - begun),
        )
