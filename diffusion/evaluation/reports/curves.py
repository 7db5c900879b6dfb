"""Curves of a training run, read from its TensorBoard files."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np

from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.folders import SkippedEntries, walk_files

EVENTS = "events.out.tfevents.*"


@dataclass(frozen=True)
class Curve:
    """One value per step, in the order of steps. A value may be infinite or NaN."""

    steps: list[int]
    values: list[float]

    def smoothed(self) -> list[float]:
        """Return the mean of about a fifteenth of the curve around each point, or of the part of it that exists at the ends.

        Values that are NaN or infinite are left out of the means; where there is no other value, the mean is NaN.
        """
        values = np.asarray(self.values, dtype=np.float64)
        finite = np.isfinite(values)
        window = np.ones(2 * (len(values) // 30) + 1)
        # A sum for each window: differences of running sums would lose all digits after a huge value.
        counts = np.convolve(finite, window, mode="same")
        sums = np.convolve(np.where(finite, values, 0), window, mode="same")
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).tolist()

    def tail(self, step: int) -> Curve:
        """Return the part from `step` on."""
        kept = [point for point in zip(self.steps, self.values, strict=True) if point[0] >= step]
        return Curve([step for step, _ in kept], [value for _, value in kept])


def read_curves(workdir: Path) -> dict[str, Curve]:
    """Read every scalar of a run, by its tag, in name order; where a resumed run repeated a step, the later value counts.

    Raises MissingError when there is no TensorBoard file, InputError when there are those of several runs.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, list[tuple[float, int, float]]] = defaultdict(list)
    for file in find_event_files(workdir):
        # 0: keep every point; one picture is enough, since pictures are not used.
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 1}).Reload()
        for tag in events.Tags()["scalars"]:
            points[tag] += [(event.wall_time, event.step, event.value) for event in events.Scalars(tag)]
    return {tag: _in_order(points[tag]) for tag in sorted(points)}


def _in_order(points: list[tuple[float, int, float]]) -> Curve:
    """Return the curve of points (time of writing, step, value)."""
    by_step = {step: value for _, step, value in sorted(points, key=itemgetter(0))}
    steps = sorted(by_step)
    return Curve(steps, [by_step[step] for step in steps])


def find_event_files(workdir: Path) -> list[Path]:
    """Find the TensorBoard files of a run: those in `tensorboard/` of its work dir, else all that lie in one folder below.

    Raises MissingError when there is none, InputError when they lie in several folders, so belong to several runs.
    """
    if not workdir.is_dir():
        raise MissingError(f"no work dir at {workdir}; expected the folder that a run was trained in")
    files = sorted((workdir / "tensorboard").glob(EVENTS))
    skipped = SkippedEntries()
    if not files:
        files = [path for path in walk_files(workdir, skipped) if path.match(EVENTS)]
    if not files:
        skipped.report()
        raise MissingError(
            f"no TensorBoard file ({EVENTS}) in {workdir}; expected the work dir of a run that has begun"
        )
    folders = sorted({file.parent.relative_to(workdir).as_posix() for file in files})
    if len(folders) > 1:
        raise InputError(f"{workdir} holds several runs, in {', '.join(folders)}; name their work dirs one by one")
    return files
