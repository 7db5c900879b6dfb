"""A cohort of slides, cut several at a time, each in a process of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from diffusion.data.slides.cutting import cut_slide
from diffusion.data.slides.discovery import FoundSlides
from diffusion.data.slides.records import CutSettings, SlideRecord, find_record
from diffusion.utils.errors import InputError

# what cutting imports: once, not by every process, which is most of the time of a small image
LIBRARIES = (
    cut_slide.__module__,
    "openslide",
    "scipy.ndimage",
    "skimage.filters.edges",
    "skimage.filters.thresholding",
    "skimage.measure._blur_effect",
)


def cut_cohort(
    slides: FoundSlides, cohort: Path, settings: CutSettings, workers: int
) -> Generator[tuple[Path, SlideRecord | Exception]]:
    """Cut all slides into a cohort's folder, `workers` at a time; yield each with its record, or why it has none.

    Those come first that are finished already, or cannot be cut.
    """
    count = len(slides.paths) + len(slides.refused)
    work = partial(_cut_in_process, cohort=cohort, settings=settings, show=min(workers, count) == 1, parent=os.getpid())
    known = {path: _find_finished(path, cohort, settings) for path in slides.paths}
    yield from ((path, outcome) for path, outcome in known.items() if outcome is not None)
    yield from ((path, InputError(reason)) for path, reason in slides.refused.items())
    waiting = [path for path, outcome in known.items() if outcome is None]
    with closing(run_isolated(work, waiting, workers)) as cut_now:
        yield from cut_now


def _find_finished(path: Path, cohort: Path, settings: CutSettings) -> SlideRecord | InputError | None:
    """Return the record of a slide that is finished, or why it cannot be cut; None for one to cut."""
    try:
        return find_record(path, cohort, settings)
    except InputError as error:
        return error


def _cut_in_process(
    path: Path, cohort: Path, settings: CutSettings, show: bool, parent: int
) -> SlideRecord | InputError:
    """Cut one slide, in a process of its own; show: with a bar of its squares."""
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
    try:
        bar = partial(tqdm, desc=path.name, unit="square", leave=False, disable=not show)
        return cut_slide(path, cohort, settings, bar)
    except (InputError, OSError) as error:
        return InputError(str(error))


def exit_with_parent(process: int) -> None:
    """End this process when that one is gone: one that is killed cannot take its children along."""
    while True:
        time.sleep(1)
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            os._exit(1)


def run_isolated(
    work: Callable[[Path], SlideRecord | Exception], paths: list[Path], workers: int
) -> Generator[tuple[Path, SlideRecord | Exception]]:
    """Yield each path with what `work` returns for it, as they finish, `workers` at a time.

    Every path has a process of its own: slide readers are native code, and one that dies of a broken slide, or of too
    little memory, takes no other slide along.
    """
    context = get_context("forkserver" if sys.platform != "win32" else "spawn")
    if sys.platform != "win32":
        context.set_forkserver_preload([*LIBRARIES])

    def alone(path: Path) -> SlideRecord | Exception:
        with ProcessPoolExecutor(1, mp_context=context) as process:
            try:
                return process.submit(work, path).result()
            except BrokenProcessPool:
                return InputError(f"{path}: the process that read it died; it is broken, or memory ran out")
            except Exception as error:  # whatever a reader makes of a broken slide, the others go on
                return InputError(f"{path}: {type(error).__name__}: {error}")

    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(alone, path): path for path in paths}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
