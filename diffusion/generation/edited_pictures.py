"""Edited pictures in a folder: which are there, and that all were made in one way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusion.generation.colours import ColourMatch
from diffusion.generation.edit_sources import EditSource, LookFile, choose_looks, open_edit
from diffusion.generation.editing import Editor
from diffusion.generation.image_files import choose_extension, find_picture, read_note, write_large_image
from diffusion.generation.output_folder import check_or_write_record
from diffusion.utils.content import fingerprint_file
from diffusion.utils.errors import InputError
from diffusion.utils.locks import file_lock
from diffusion.utils.recorded import describe_difference

RECORD = "edit.json"  # of the settings that all pictures of a folder share
FILES = ("picture", "mask", "outlines", "control")  # that a picture is made of
LOCK = ".edit.lock"  # while a command writes there
HASHED_BYTES = 2**28  # of a picture up to which its content is hashed, in less than a second


@dataclass(frozen=True)
class EditJob:
    """One picture to make. name: of its file in the folder of results, without ending; number: from which its noise follows.

    format: png, tiff or auto.
    """

    source: EditSource
    name: str
    number: int
    format: str = "auto"


@dataclass(frozen=True)
class Looks:
    """The files that condition instead of the pictures themselves, with their embeddings (D,)."""

    files: Sequence[LookFile] = ()
    embeddings: Mapping[Path, torch.Tensor] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """Return what identifies them."""
        found = [[each.kind, fingerprint_file(each.path), each.amount] for each in self.files]
        return {"looks": found} if found else {}


def edit_pictures(editor: Editor, jobs: Sequence[EditJob], out: Path, looks: Looks) -> dict[Path, str]:
    """Edit pictures into a folder; those that are there stay. Several processes share them.

    Returns the files that could not be edited, with the reasons. Raises InputError for a folder of pictures that were made otherwise, or
    that another command writes to.
    """
    from accelerate.utils import gather_object

    state = editor.session.state
    with file_lock(out / LOCK) if state.is_main_process else nullcontext():
        if state.is_main_process:
            check_or_write_record(out / RECORD, {**editor.record, **looks.record}, "edited pictures")
        state.wait_for_everyone()
        missing = [job for job in jobs if not is_done(job, out)]
        state.print(f"{len(jobs) - len(missing)} of {len(jobs)} pictures are there; editing {len(missing)}")
        state.wait_for_everyone()  # every process has looked before one of them writes
        mine, failed = missing[state.process_index :: state.num_processes], {}
        with tqdm(total=len(mine), unit="picture", disable=not state.is_main_process or len(mine) < 2) as progress:
            for job in mine:
                try:
                    target = edit_picture(editor, job, out, looks)
                except InputError as error:
                    failed[job.source.path] = str(error)
                else:
                    tqdm.write(f"written: {target}")
                progress.update()
        return {path: reason for each in gather_object([failed]) for path, reason in each.items()}


def edit_picture(editor: Editor, job: EditJob, out: Path, looks: Looks) -> Path:
    """Edit one picture, and return its file. Raises MissingError, InputError."""
    opened = open_edit(job.source)
    of_picture = choose_looks(looks.files, looks.embeddings, opened)
    with tqdm(total=editor.steps, unit="step", desc=job.name, leave=False) as progress:
        pixels = editor.edit(opened.canvas, job.number, of_picture, on_step=lambda *_: advance(progress))
    height, width = pixels.shape[:2]
    target = out / f"{job.name}.{choose_extension(height, width, job.format)}"
    note = edit_note(editor, job, looks)
    write_large_image(target, [torch.from_numpy(pixels).permute(2, 0, 1)], height, width, opened.mpp, note)
    return target


def edit_note(editor: Editor, job: EditJob, looks: Looks) -> dict[str, Any]:
    """Return the note of an edited picture: how it was made, and of what, without paths of this machine."""
    note = {**editor.session.image_metadata(job.number), **editor.record, **looks.record}
    return {**note, "source": job.source.path.name, "of": identify(job.source)}


def advance(progress: tqdm) -> None:
    """Advance a bar by a step of the solver, whose latents stay as they are."""
    progress.update()


def is_done(job: EditJob, out: Path) -> bool:
    """Tell whether a picture is in a folder of results.

    Raises InputError for one that was made of other files or in another way, and for a file that no edit has made.
    """
    target = find_picture(out, job.name, job.format)
    if target is None:
        return False
    before, source = read_note(target).get("of"), identify(job.source)
    if not isinstance(before, dict):
        raise InputError(f"{target} is in the way: no edit has made it; name another folder with --out, or move it")
    if differs := describe_difference(before, source):
        was, now = differs
        files = [name for name in FILES if before.get(name) != source.get(name)]
        how = f"of another {files[0]}" if files else f"with {was}, not {now}"
        raise InputError(f"{target} was made {how}; name another folder with --out, or delete it")
    return True


def identify(source: EditSource) -> dict[str, Any]:
    """Return what tells what is edited, and what of it changes, from other files and parts of the same name."""
    files = dict(zip(FILES, (source.path, source.mask, source.outlines, source.control), strict=True))
    record: dict[str, Any] = {
        name: identify_picture(path) if name == "picture" else fingerprint_file(path)
        for name, path in files.items()
        if path is not None and path.is_file()
    }
    record |= {"mpp": source.mpp, "image_mpp": source.image_mpp, "part": source.part, "box": source.box}
    record |= {"classes": list(source.classes), "extend": source.extend, "enlarge": source.enlarge}
    return json.loads(json.dumps(record))


def identify_picture(path: Path) -> str | int:
    """Return what tells a picture from another of its name: its content's hash; of a slide of gigabytes, its size."""
    size = path.stat().st_size
    return fingerprint_file(path) if size <= HASHED_BYTES else size


def recolour_pictures(jobs: Sequence[EditJob], out: Path, colours: ColourMatch) -> dict[Path, str]:
    """Give pictures the colours of a reference, and change nothing else of them; return those that could not, with the reasons.

    Of several processes the first does it: it takes milliseconds.
    """
    from accelerate import PartialState

    failed: dict[Path, str] = {}
    if not PartialState(cpu=True).is_main_process:
        return failed
    with file_lock(out / LOCK):
        record = {"colours": [colours.method, colours.fingerprint]}
        check_or_write_record(out / RECORD, record, "edited pictures")
        for job in tqdm([job for job in jobs if not is_done(job, out)], unit="picture", disable=len(jobs) < 2):
            try:
                opened = open_edit(job.source)
                pixels = colours.apply(opened.canvas.pixels, str(job.source.path))
            except InputError as error:
                failed[job.source.path] = str(error)
                continue
            height, width = pixels.shape[:2]
            target = out / f"{job.name}.{choose_extension(height, width, job.format)}"
            note = {**record, "source": job.source.path.name, "of": identify(job.source)}
            write_large_image(target, [torch.from_numpy(pixels).permute(2, 0, 1)], height, width, job.source.mpp, note)
            tqdm.write(f"written: {target}")
    return failed
