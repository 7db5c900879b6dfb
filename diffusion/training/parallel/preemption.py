"""Being stopped: by signals, or by a time limit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

EXIT_CODE = 75  # of a run that was stopped and saved: "temporary failure, try again" (sysexits.h)
CODE_FILE = "PIXCELL_EXIT_CODE_FILE"  # names a file to leave the code in: launchers turn every other than 0 into 1
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


class StopReason(IntEnum):
    """Why to stop, the most urgent last; of several processes' reasons the last counts."""

    NO = 0
    TIME_LIMIT = 1
    SIGNAL = 2
    SAVE_FAILED = 3


class PreemptionHandler:
    """Notes signals that ask the run to stop, for as long as its `with` block lasts. Repeated ones change nothing; but
    before the first step, when nothing can be lost, a second Ctrl-C ends the process.

    time_limit: minutes from now on after which to stop; None for no limit.
    """

    def __init__(self, time_limit: float | None = None):
        self._deadline = None if time_limit is None else time.monotonic() + 60 * time_limit
        self._signal: int | None = None
        self.before_first_step = True
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> PreemptionHandler:
        if threading.current_thread() is threading.main_thread():  # Python lets no other set handlers
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def poll(self) -> StopReason:
        """Return why this process wants to stop, if it does."""
        if self._signal is not None:
            return StopReason.SIGNAL
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return StopReason.TIME_LIMIT if late else StopReason.NO

    def reason(self, agreed: StopReason) -> str:
        """Return what stopped the run, in words."""
        if agreed == StopReason.TIME_LIMIT:
            return "the time limit"
        return "a signal to another process" if self._signal is None else signal.Signals(self._signal).name

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGINT and self.before_first_step:
            raise KeyboardInterrupt
        self._signal = number
