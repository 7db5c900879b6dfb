"""A training step on a CPU that others use, too: with our way of waiting for threads, and with the runtime's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.case import Case
from benchmarks.clock import median
from benchmarks.table import Row, compared, timed
from diffusion.utils.threads import USER_SETTINGS, WAITING

CLONE = Path(__file__).resolve().parents[2]
OURS, PEER = "ours", "the runtime's own waiting"
# What computes beside, in its own process and with the settings that it comes with.
NEIGHBOURS = {
    "alone": (),
    "beside a program of one thread": ("-c", "while True: pass"),
    "beside another training": ("-m", __name__, "tiny", "256", "8", "fp32", "0"),
}
WARM_UP = 5  # seconds until a neighbour computes


def sharing_rows(case: Case, rounds: int, steps: int = 10) -> Iterator[Row]:
    """Yield the seconds of a step beside each neighbour, and how many times those alone they are."""
    what, alone = f"training step {case.name}, batch {case.batch}", {}
    for name, arguments in NEIGHBOURS.items():
        taken: dict[str, list[float]] = {OURS: [], PEER: []}
        with neighbour(arguments):
            for _ in range(rounds):
                for way, seconds in taken.items():
                    seconds.append(step_seconds(case, steps, way == OURS))
        yield timed(f"{what}, {name}", taken, PEER)
        alone = alone or {way: median(seconds) for way, seconds in taken.items()}
        if arguments:
            times = [median(taken[way]) / alone[way] for way in (OURS, PEER)]
            yield compared(f"{what}, {name}, of the time alone", "x", *times, PEER)


@contextlib.contextmanager
def neighbour(arguments: Sequence[str]) -> Iterator[None]:
    """Run Python with some arguments beside what is measured; nothing without any."""
    if not arguments:
        yield
        return
    command = [sys.executable, *arguments]
    program = subprocess.Popen(command, cwd=CLONE / "tools", env=environment(waiting=False), stdout=subprocess.DEVNULL)
    try:
        time.sleep(WARM_UP)
        yield
    finally:
        program.kill()
        program.wait()


def step_seconds(case: Case, steps: int, waiting: bool) -> float:
    """Return the median of some steps in a fresh process, since torch's threads read their settings once."""
    values = (case.size, case.pixels, case.batch, case.precision, steps)
    command = [sys.executable, "-m", "benchmarks.sharing", *map(str, values)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=CLONE / "tools", env=environment(waiting)
    )
    return float(done.stdout)


def environment(waiting: bool) -> dict[str, str]:
    """Return this process's environment, with our way of waiting or with no word on that."""
    kept = {name: value for name, value in os.environ.items() if name not in USER_SETTINGS}
    return kept | WAITING if waiting else kept


def main(arguments: Sequence[str]) -> None:
    """Print the median seconds of some steps; with 0 of them, go on until the process is ended."""
    import torch

    from benchmarks.training import Ours, Step

    size, pixels, batch, precision, steps = arguments
    step = Step(Ours(Case(size, int(pixels), int(batch), torch.device("cpu"), precision)))
    seconds: list[float] = []
    while steps == "0" or len(seconds) < 2 + int(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    print(median(seconds[2:]))


if __name__ == "__main__":
    main(sys.argv[1:])
