"""A training step on a CPU that others use, too: with our way of waiting for threads, and with the runtime's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.case import Case
from benchmarks.startup import REPOSITORY
from benchmarks.table import Row, compare_row, time_row
from diffusion.utils.threads import USER_SETTINGS, WAIT_SETTINGS

OURS, PEER = "ours", "the runtime's own waiting"
# What computes beside, in its own process and with the settings that it comes with.
NEIGHBOURS = {
    "alone": (),
    "beside a program of one thread": ("-c", "while True: pass"),
    "beside another training": ("-m", __name__, "tiny", "256", "8", "fp32", "0"),
}
WARM_UP = 5  # seconds until a neighbour computes


def sharing_rows(case: Case, rounds: int, steps: int = 10) -> Iterator[Row]:
    """Yield rows of a step's seconds beside each neighbour, and of their ratio to the seconds without one."""
    what = f"training step {case.name}, batch {case.batch}"
    baseline: dict[str, float] = {}
    for name, arguments in NEIGHBOURS.items():
        taken: dict[str, list[float]] = {OURS: [], PEER: []}
        with run_neighbour(arguments):
            for _ in range(rounds):
                for way, seconds in taken.items():
                    seconds.append(time_steps(case, steps, way == OURS))
        yield time_row(f"{what}, {name}", taken, PEER)
        baseline = baseline or {way: median(seconds) for way, seconds in taken.items()}
        if arguments:
            ours, peer = (median(taken[way]) / baseline[way] for way in (OURS, PEER))
            yield compare_row(f"{what}, {name}, of the time alone", "x", ours, peer, PEER)


@contextlib.contextmanager
def run_neighbour(arguments: Sequence[str]) -> Iterator[None]:
    """Run Python with some arguments beside what is measured; nothing without any."""
    if not arguments:
        yield
        return
    command = [sys.executable, *arguments]
    program = subprocess.Popen(
        command, cwd=REPOSITORY / "tools", env=build_environment(waiting=False), stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(WARM_UP)
        yield
    finally:
        program.kill()
        program.wait()


def time_steps(case: Case, steps: int, waiting: bool) -> float:
    """Return the median seconds of some steps in a fresh process, since torch's threads read their settings once."""
    values = (case.size, case.pixels, case.batch, case.precision, steps)
    command = [sys.executable, "-m", "benchmarks.sharing", *map(str, values)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=REPOSITORY / "tools", env=build_environment(waiting)
    )
    return float(done.stdout)


def build_environment(waiting: bool) -> dict[str, str]:
    """Return this process's environment, with our settings of how threads wait, or with none."""
    inherited = {name: value for name, value in os.environ.items() if name not in USER_SETTINGS}
    return inherited | WAIT_SETTINGS if waiting else inherited


def main(arguments: Sequence[str]) -> None:
    """Print the median seconds of some steps; with 0 steps, go on until the process is ended."""
    import torch

    from benchmarks.training import OurSetup, Step

    size, pixels, batch, precision, steps = arguments
    step = Step(OurSetup(Case(size, int(pixels), int(batch), torch.device("cpu"), precision)))
    seconds: list[float] = []
    while steps == "0" or len(seconds) < 2 + int(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    print(median(seconds[2:]))


if __name__ == "__main__":
    main(sys.argv[1:])
