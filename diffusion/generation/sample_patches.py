"""Filling a folder with images of a network's own size; a folder that was begun is completed."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from diffusion.formats import SYNTHETIC_DIR
from diffusion.generation.conditions import IndexConditions
from diffusion.generation.controls import always_has_mask, control_mask
from diffusion.generation.generators import ImageMaker
from diffusion.generation.output_folder import OutputFolder
from diffusion.generation.priors import PriorConditions
from diffusion.generation.session import Session
from diffusion.generation.sources import ConditionSource, SampleConditions, choose_conditions
from diffusion.utils.errors import InputError
from diffusion.utils.hardware import describe_device, windows_per_pass


class SampledFolder(NamedTuple):
    """What was sampled into a folder: pixels a side, images that were written now, and the seconds that they took.

    The seconds are those of the main process, from embeddings to files on the disk; of what was there before nothing is counted.
    """

    size: int
    images: int
    seconds: float

    @property
    def seconds_per_image(self) -> float | None:
        """Return the time of an image, of all processes together; None where none was written."""
        return self.seconds / self.images if self.images else None


CHECKED = 16  # conditions of which one must have its tissue, where that is needed


def sample_patches(
    session: Session,
    source: ConditionSource,
    folder: OutputFolder,
    sizes: Collection[int],
    count: int | None,
    index_count: int,
    batch_size: int | None = None,
    with_real: bool = True,
    needs_real: bool = False,
) -> SampledFolder:
    """Fill a folder with images of the network's own size, which must be one of `sizes`; write only what is missing.

    count: how many; None: one for each file that conditions, or of an index or a prior `index_count`. batch_size: in one pass;
    None: as many as keep the device busy.
    with_real: whether the tissue that conditions is written, too; needs_real: whether to refuse conditions without.
    Raises MissingError, InputError.
    """
    config, state = session.run.config, session.state
    if config.image_size not in sizes:
        known = " and ".join(str(size) for size in sizes)
        raise InputError(f"{session.run.folder} was trained at {config.image_size} pixels: this tool samples {known}")
    conditions, origin = choose_conditions(session, source, with_real)
    is_controlled = conditions[0].condition.control is not None
    session.solver.check_control(session.run, is_controlled)
    count = count or (index_count if isinstance(conditions, (IndexConditions, PriorConditions)) else len(conditions))

    if needs_real and not any(map(conditions.has_pixels, range(min(count, CHECKED)))):
        raise InputError(
            f"the patches that condition have no images in {session.root / 'patches'}, so there is nothing to score samples "
            "against; put them there, or score against other tissue with --real"
        )
    todo = folder.list_missing(count, conditions.has_pixels, is_controlled and always_has_mask(session.run))
    if state.is_main_process:
        settings = {"pictures": "patches", **session.settings, "format": folder.extension}
        folder.check_or_write_settings({**settings, **origin.content}, {**session.locations, **origin.locations})
    on = describe_device(session.device, state.num_processes, session.solver.precision)
    state.print(f"{count - len(todo)} of {count} images are there; sampling {len(todo)} on {on}")
    state.wait_for_everyone()  # every process has looked before one of them writes
    make = ImageMaker(session.run, session.codec, conditions, session.seed, session.solver)
    batch_size = batch_size or windows_per_pass(session.device, config.input_size)
    mine = todo[state.process_index :: state.num_processes]
    began = time.perf_counter()
    with tqdm(total=len(mine), unit="image", disable=not state.is_main_process) as progress:
        for first in range(0, len(mine), batch_size):
            for i, condition, pixels in make.images(mine[first : first + batch_size]):
                control = condition.condition.control
                mask = None if control is None else control_mask(control, session.run, session.codec)
                folder.write_images(i, condition, pixels, session.image_metadata(i), mask)
                progress.update()
            if first == 0 and batch_size < len(mine):
                session.print_batch_advice(batch_size)
    state.wait_for_everyone()
    seconds = time.perf_counter() - began
    if state.is_main_process:
        print_summary(folder.path / SYNTHETIC_DIR, folder.real_folder, conditions, count)
    return SampledFolder(config.image_size, len(todo), seconds)


def print_summary(samples: Path, real: Path, conditions: SampleConditions, count: int) -> None:
    """Print how many images there are, and for how many there is tissue to compare with."""
    names = set(os.listdir(samples))
    tissue = len(names & set(os.listdir(real))) if real.is_dir() else 0
    of_them = "them" if tissue == count else f"{tissue} of them"
    print(f"{count} images in {samples}" + (f", the tissue that conditioned {of_them} in {real}" if tissue else ""))
    if isinstance(conditions, IndexConditions) and conditions.pixels and tissue < count:
        print(
            f"{count - tissue} patches have no image in {conditions.dataset.root / 'patches'}: nothing to compare with"
        )
