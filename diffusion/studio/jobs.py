"""The jobs of a studio: one at a time on the device, the others in a queue; each may be watched and cancelled."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusion.utils.errors import InputError
from diffusion.utils.hardware import empty_cache

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
KEPT = 200  # jobs that are remembered
QUEUED = 50  # jobs that may wait


class CancelledError(Exception):
    """The job was cancelled while it ran."""


def _nothing(_: Job) -> dict[str, Any]:
    return {}


@dataclass(eq=False)
class Job:
    """A job of one page (client). step of steps are done; preview: a JPEG of what it is on the way to, and its number."""

    client: str
    work: Callable[[Job], dict[str, Any]]
    number: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    state: State = "queued"
    step: int = 0
    steps: int = 0
    preview: bytes | None = None
    previews: int = 0
    result: dict[str, Any] | None = None
    error: str = ""
    began: float = 0.0
    ended: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def advance(self, step: int, steps: int) -> None:
        """Say how far it is. Raises CancelledError when it was cancelled."""
        if self.stop.is_set():
            raise CancelledError
        self.step, self.steps = step, steps

    def show(self, preview: bytes) -> None:
        """Show what it is on the way to."""
        self.preview, self.previews = preview, self.previews + 1

    @property
    def seconds(self) -> float:
        """Return how long it has run, or ran."""
        return (self.ended or time.monotonic()) - self.began if self.began else 0.0


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is one of too little memory, as Python, and torch on its several devices, say it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(text in str(error).lower() for text in ("out of memory", "can't allocate memory"))


class JobQueue:
    """Runs jobs in a thread of its own, in the order in which they come."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._waiting: list[Job] = []
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="studio-jobs", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> Job:
        """Append a job. Raises InputError when too many wait."""
        with self._changed:
            if len(self._waiting) >= QUEUED:
                raise InputError(f"{QUEUED} jobs wait already; try again later")
            self._jobs[job.number] = job
            self._waiting.append(job)
            for number in list(self._jobs)[:-KEPT]:
                if self._jobs[number].state not in ("queued", "running"):
                    del self._jobs[number]
            self._changed.notify()
        return job

    def find(self, number: str, client: str) -> Job | None:
        """Return a job of a page, or None: pages do not see the jobs of others."""
        job = self._jobs.get(number)
        return job if job is not None and job.client == client else None

    def place(self, job: Job) -> int:
        """Return how many jobs are before one that waits, the running one counted; 0 for one that runs or has ended."""
        with self._changed:
            if job not in self._waiting:
                return 0
            running = any(each.state == "running" for each in self._jobs.values())
            return self._waiting.index(job) + running

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or have it stop at its next step."""
        with self._changed:
            job.stop.set()
            if job in self._waiting:
                self._waiting.remove(job)
                job.work = _nothing  # what it was to be made of, with its masks, is not kept
                job.state = "cancelled"

    def close(self, seconds: float = 10.0) -> None:
        """Have the running job stop at its next step, and wait for it: threads of torch must not outlive the process's end."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            for job in self._jobs.values():
                job.stop.set()
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._waiting.pop(0)
                job.state, job.began = "running", time.monotonic()
            state, error = self._finish(job)
            job.ended, job.error, job.preview = time.monotonic(), error, None
            job.work = _nothing
            job.state = state

    @staticmethod
    def _finish(job: Job) -> tuple[State, str]:
        """Run a job; return its state and what went wrong. Nothing that happens in a job ends the thread."""
        try:
            job.advance(0, job.steps)
            job.result = job.work(job)
            return "done", ""
        except CancelledError:
            return "cancelled", ""
        except InputError as error:
            return "failed", str(error)
        except BaseException as error:  # of a library that calls exit(), too
            if is_out_of_memory(error):
                empty_cache()
                return "failed", "out of memory: take a smaller selection, or wait until others are done"
            log.exception("a job of the studio failed")
            return "failed", f"it failed ({type(error).__name__}); the server's output says where"
