"""The work of a studio's jobs: the same code as `pixcell edit` and `pixcell stain`, on a session that stays open."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusion.data.slides.parts import read_part
from diffusion.formats import CONDITIONS_DIR, EDIT_STRENGTH, ENLARGE_STRENGTH, STAIN_STRENGTH, WINDOW
from diffusion.generation.colours import ColourMatch
from diffusion.generation.controls import read_picture
from diffusion.generation.edit_sources import EditSource, LookFile, choose_looks, load_embedding, open_edit
from diffusion.generation.edited_pictures import EditJob, Looks, edit_note
from diffusion.generation.editing import Editor, EditSettings
from diffusion.generation.image_files import save_image
from diffusion.generation.session import Session, open_session
from diffusion.generation.solver import Solver
from diffusion.generation.stained_pictures import StainJob, choose_regions, stain_pictures
from diffusion.generation.staining import Stainer, StainSettings
from diffusion.inpainting import clean_between
from diffusion.model.flow import load_flow
from diffusion.sampling import count_started_steps
from diffusion.studio.history import BEFORE, PICTURE, History
from diffusion.studio.jobs import Job
from diffusion.studio.pictures import PictureShelf
from diffusion.studio.requests import JobRequest, LookRequest, format_command
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write_bytes
from diffusion.utils.hardware import windows_per_pass

PREVIEWS = 4  # of a job with many steps
PREVIEW_STEPS = 8  # from which on there are previews
PREVIEW_SIDE = 512  # pixels


@dataclass(frozen=True)
class Model:
    """What the studio samples with: arguments of `open_session` and options of the commands that say the same.

    loras: adapters that the page may add, and scales, how much each counts at first. flow: of stains.
    """

    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    loras: Sequence[str] = ()
    scales: Sequence[float] = ()
    flow: Path | None = None
    precision: str = "fp32"
    batch_size: int | None = None


@dataclass
class Workshop:
    """Does the jobs. One session is open at a time: other adapters open another one in its place."""

    model: Model
    shelf: PictureShelf
    history: History
    _opened: tuple[tuple[str, ...], Session] | None = field(default=None, repr=False)
    _flow: Any = field(default=None, repr=False)

    def session(self, loras: Sequence[float]) -> Session:
        """Return the session with adapters, each by how much it counts; 0 leaves it out. Raises InputError."""
        if len(loras) > len(self.model.loras):
            raise InputError(f"{len(loras)} adapters: the studio was started with {len(self.model.loras)}")
        chosen = tuple(f"{path}:{scale!r}" for path, scale in zip(self.model.loras, loras, strict=False) if scale)
        if self._opened is None or self._opened[0] != chosen:
            self._opened = None  # before the next one takes memory
            session = open_session(**self.model.arguments, loras=chosen)
            _ = session.embedder  # loaded now, with what it may have to download, and not at a click
            self._opened = chosen, session
        return self._opened[1]

    def stored_looks(self) -> dict[str, Path]:
        """Return the embeddings that published weights have beside them, by name."""
        if self._opened is None:
            return {}
        folder = self._opened[1].run.folder / CONDITIONS_DIR
        return {path.stem: path for path in sorted(folder.glob("*.npy"))}

    def describe(self) -> dict[str, Any]:
        """Return what the page has to know of the network."""
        session = self.session(self.model.scales)
        run, student = session.run, session.run.student
        control = None
        if run.controlnet is not None:
            config = run.controlnet.config
            control = {
                "painted": not config.maps or (len(config.maps) == 1 and config.mask_kind in ("binary", "labels"))
            }
            control["own"] = not config.maps  # reads the picture where nothing is painted
        return {
            "name": run.folder.resolve().name,
            "size": run.config.image_size,
            "steps": session.solver.taken_steps,
            "known_steps": list(student.steps) if student else None,
            "guidance": student.guidance if student else session.solver.strength(run),
            "device": str(session.device),
            "loras": [
                {"name": Path(path).name, "scale": scale}
                for path, scale in zip(self.model.loras, self.model.scales, strict=True)
            ],
            "flow": self.model.flow is not None,
            "control": control,
            "looks": list(self.stored_looks()),
            "strengths": {"vary": EDIT_STRENGTH, "enlarge": ENLARGE_STRENGTH, "stain": STAIN_STRENGTH},
        }

    def run(self, request: JobRequest, job: Job) -> dict[str, Any]:
        """Do a job, and return its entry in the history. Raises InputError, CancelledError."""
        place = self.history.begin()
        try:
            make = self._stain if request.action == "stain" else self._edit
            command, settings = make(request, job, place)
            shown = self.shelf.show(request.picture)
            entry = {
                "action": request.action,
                "picture": shown.name,
                "source": request.picture,
                "part": list(request.part),
                "resolution": self.shelf.resolution(request.picture),
                "seed": request.seed,
                "command": command,
                "settings": settings,
                "request": {
                    name: vars(value) if isinstance(value, LookRequest) else value
                    for name, value in vars(request).items()
                    if name not in ("mask", "control") and value is not None
                },
                "seconds": round(job.seconds, 2),
            }
            return self.history.finish(place, entry)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _edit(self, request: JobRequest, job: Job, place: Path) -> tuple[str, dict[str, Any]]:
        picture = self.shelf.path(request.picture)
        mask = _save_png(request.mask, place / "mask.png", "the mask") if request.action == "repair" else None
        control = self._control_file(request, place)
        source = EditSource(
            picture,
            request.part,
            **self.shelf.resolution(request.picture),
            mask=mask,
            extend=request.extend if request.action == "extend" else None,
            enlarge=request.enlarge if request.action == "enlarge" else 1,
            control=control,
        )
        part = {"part": request.part, **self.shelf.resolution(request.picture)}
        if request.action == "colours":
            return self._match_colours(request, source, part, place)
        strength = self._strength(request)
        session = self._chosen_session(request)
        job.advance(0, 0)
        colours, of_colours = self._colours(request, place)
        looks = Looks()
        if request.look is not None:
            path = self._look_file(request.look, place, "look")
            looks = Looks([LookFile(path, request.look.amount)], {path: load_embedding(path, session)})
        batch_size = self.model.batch_size or windows_per_pass(session.device, session.run.config.input_size)
        editor = Editor(session, EditSettings(strength, batch_size=batch_size), colours)
        opened = open_edit(source)
        controlnet = session.run.controlnet
        if control is None and request.control_scale and controlnet is not None and not controlnet.config.maps:
            _save(opened.canvas.pixels, place / "control.png")  # a ControlNet of latents reads the picture
            source = replace(source, control=place / "control.png")
            opened = replace(opened, canvas=replace(opened.canvas, control=opened.canvas.pixels))
        job.advance(0, 0)
        _save(opened.canvas.pixels if opened.canvas.coarse is None else opened.canvas.coarse, place / BEFORE)
        box = opened.canvas.choose_area(session.run.config.image_size)
        preview = Preview(job, editor.steps, lambda latents: editor.finish(opened.canvas, box, latents, True))
        of_picture = choose_looks(looks.files, looks.embeddings, opened)
        pixels = editor.edit(opened.canvas, 0, of_picture, on_step=preview)
        job.advance(editor.steps, editor.steps)
        note = edit_note(editor, EditJob(source, picture.stem, 0), looks)
        save_image(place / PICTURE, torch.from_numpy(pixels).permute(2, 0, 1), note)
        options = {
            **self.model.options,
            **part,
            "strength": strength,
            "mask": mask and mask.absolute(),
            "extend": source.extend,
            "enlarge": source.enlarge if source.enlarge != 1 else None,
            "look": tuple(f"{each.path.absolute()}:{each.amount!r}" for each in looks.files),
            **of_colours,
            "control": source.control and source.control.absolute(),
            **self._shared_options(request, place),
        }
        return format_command("edit", [picture], options), note

    def _match_colours(
        self, request: JobRequest, source: EditSource, part: Mapping[str, Any], place: Path
    ) -> tuple[str, dict[str, Any]]:
        """Give the selection the colours of a reference, and change nothing else."""
        colours, of_colours = self._colours(request, place)
        assert colours is not None  # a request without is refused when it is read
        pixels = open_edit(source).canvas.pixels
        _save(pixels, place / BEFORE)
        matched = colours.apply(pixels, "the selection")
        note = {"colours": [colours.method, colours.fingerprint], "source": source.path.name}
        save_image(place / PICTURE, torch.from_numpy(matched).permute(2, 0, 1), note)
        return format_command("edit", [source.path], {**part, **of_colours, "out": f"pixcell_{place.name}"}), note

    def _colours(self, request: JobRequest, place: Path) -> tuple[ColourMatch | None, dict[str, Any]]:
        """Return the colours that are asked for, and the options that say so; none: none are. Raises InputError."""
        if request.colours is None:
            return None, {}
        reference = self._look_file(request.colours, place, "colours")
        if reference.suffix == ".npy":
            raise InputError("the colours of a stored look are not known: choose a picture")
        colours = ColourMatch(read_picture(reference), request.colour_method, "the reference")
        return colours, {"match_colours": reference.absolute(), "colour_method": request.colour_method}

    def _stain(self, request: JobRequest, job: Job, place: Path) -> tuple[str, dict[str, Any]]:
        if self.model.flow is None and not request.loras:
            raise InputError("no other stain: start the studio with --flow, and with the adapter of the stain")
        picture = self.shelf.path(request.picture)
        strength = STAIN_STRENGTH if request.strength is None else request.strength
        solver = self._solver(request, strength if request.structure == "sdedit" else 1.0)
        session = self.session(request.loras).with_solver(solver, request.seed)
        if self._flow is None and self.model.flow is not None:
            self._flow = load_flow(self.model.flow).to(session.device)
        batch_size = self.model.batch_size or windows_per_pass(session.device, session.run.config.input_size)
        settings = StainSettings(request.structure, batch_size=batch_size)
        steps = session.solver.taken_steps
        if request.structure == "sdedit":
            steps = count_started_steps(strength, steps)
        resolution = self.shelf.resolution(request.picture)
        rows, columns = (-(-side // WINDOW) for side in reversed(request.part[2:]))
        regions = len(choose_regions(rows, columns, settings).corners)
        preview = Preview(job, steps, lambda latents: stainer.decode(latents[0]).permute(1, 2, 0).numpy(), regions)
        stainer = Stainer(session, self._flow, settings, on_step=preview)
        with self.shelf.read_from(request.picture) as slide:
            _save(read_part(slide, picture, request.part)[0], place / BEFORE)
        work = place / "work"
        stain_job = StainJob(picture, picture.stem, **resolution, part=request.part, format="png")
        if failed := stain_pictures(stainer, [stain_job], work):
            raise InputError(next(iter(failed.values())))
        (work / f"{picture.stem}.png").replace(place / PICTURE)
        shutil.rmtree(work)
        options = {
            **self.model.options,
            "part": request.part,
            **resolution,
            "flow": self.model.flow and self.model.flow.absolute(),
            "structure": request.structure,
            "strength": strength if request.structure == "sdedit" else None,
            **self._shared_options(request, place),
            "format": "png",
        }
        return format_command("stain", [picture], options), stainer.record

    def _strength(self, request: JobRequest) -> float:
        """Return the strength of an edit: what is sampled keeps nothing, what is varied as much as is asked for."""
        if request.action in ("sample", "extend"):
            return 1.0
        usual = {"repair": 1.0, "enlarge": ENLARGE_STRENGTH}.get(request.action, EDIT_STRENGTH)
        return usual if request.strength is None else request.strength

    def _solver(self, request: JobRequest, start_strength: float = 1.0) -> Solver:
        own = self.model.arguments["solver"]
        return Solver(
            request.steps,
            request.guidance,
            guidance_interval=own.guidance_interval,
            precision=self.model.precision,
            control_scale=request.control_scale,
            start_strength=start_strength,
        )

    def _chosen_session(self, request: JobRequest) -> Session:
        return self.session(request.loras).with_solver(self._solver(request), request.seed)

    def _shared_options(self, request: JobRequest, place: Path) -> dict[str, Any]:
        """Return the options of a request that both commands have; each command has a folder of its own for its result."""
        scales = zip(self.model.loras, request.loras, strict=False)
        return {
            "steps": request.steps,
            "guidance": request.guidance,
            "seed": request.seed,
            "control_scale": request.control_scale if request.control_scale != 1 else None,
            "lora": tuple(f"{path}:{scale!r}" for path, scale in scales if scale),
            "out": f"pixcell_{place.name}",
        }

    def _look_file(self, look: LookRequest, place: Path, name: str) -> Path:
        """Return the file of a look: a stored embedding, a result, or 256 pixels of a picture, which are written. Raises InputError."""
        if look.kind == "stored":
            stored = self.stored_looks()
            if look.name not in stored:
                raise MissingError(f"no stored look {look.name[:40]!r}")
            return stored[look.name]
        if look.kind == "result":
            copy = place / f"{name}.png"
            shutil.copyfile(self.history.file(look.name, PICTURE), copy)
            with Image.open(copy) as image:
                _check_square(image.width, image.height, "the result")
            return copy
        with self.shelf.read_from(look.name) as slide:
            _check_square(slide.width, slide.height, "the picture")
            left, top = (round(each / slide.factor) - WINDOW // 2 for each in (look.x, look.y))
            left = min(max(left, 0), slide.width - WINDOW)
            top = min(max(top, 0), slide.height - WINDOW)
            square = slide.read(left, top, WINDOW)
        square.save(place / f"{name}.png")
        return place / f"{name}.png"

    def _control_file(self, request: JobRequest, place: Path) -> Path | None:
        """Write what is painted for the ControlNet, in the size of the result; None: nothing is."""
        path = _save_png(request.control, place / "control.png", "the control")
        if path is None or request.action not in ("extend", "enlarge"):
            return path
        with Image.open(path) as image:
            mask = np.asarray(image)
        if request.action == "enlarge":
            mask = mask.repeat(request.enlarge, 0).repeat(request.enlarge, 1)
        else:
            left, top, right, bottom = request.extend or (0, 0, 0, 0)
            mask = np.pad(mask, ((top, bottom), (left, right)))
        Image.fromarray(mask).save(path)
        return path


class Preview:
    """Follows the steps of a job's pictures, and shows some of what each is on the way to, by what two steps in a row agree on.

    steps: of one picture; pictures: how many are made, one after the other. draw: the picture, uint8 (H, W, 3), of latents without noise.
    """

    def __init__(self, job: Job, steps: int, draw: Callable[[torch.Tensor], np.ndarray], pictures: int = 1):
        self.job, self.steps, self.draw = job, steps, draw
        self.done = 0
        self.before: tuple[torch.Tensor, torch.Tensor] | None = None  # latents, and the timestep that they are at
        self.latents: torch.Tensor | None = None
        job.steps = steps * pictures

    def __call__(self, step: int, timestep: torch.Tensor, latents: torch.Tensor) -> None:
        """Count a step, after which there are these latents; `timestep` is the one that it began at."""
        self.done += 1
        self.job.advance(self.done, self.job.steps)
        if step == 0:  # of another picture
            self.before = self.latents = None
        every = max(1, self.steps // (PREVIEWS + 1))
        if self.latents is not None:
            if self.steps >= PREVIEW_STEPS and self.before is not None and step % every == 0:
                clean = clean_between(*self.before, self.latents, timestep)
                with suppress(InputError, MemoryError, torch.OutOfMemoryError):  # the result may be good all the same
                    self.show(self.draw(clean))
            self.before = self.latents, timestep
        self.latents = latents

    def show(self, pixels: np.ndarray) -> None:
        """Show a picture, made smaller."""
        image = Image.fromarray(pixels)
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        self.job.show(buffer.getvalue())


def _check_square(width: int, height: int, name: str) -> None:
    """Raise InputError for a picture that no look can be taken of. name: for the message."""
    if min(width, height) < WINDOW:
        raise InputError(f"{name} has {width} x {height} pixels: expected {WINDOW} a side, of which a look is taken")


def _save_png(content: str | None, path: Path, name: str) -> Path | None:
    """Write a mask that the page has sent, as white and black; None: none was sent. Raises InputError."""
    if content is None:
        return None
    try:
        data = base64.b64decode(content, validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > 2 * 4096**2:
                raise InputError(f"{name} has {image.width} x {image.height} pixels: too many")
            painted = np.asarray(image.convert("L")) > 127
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything
        raise InputError(f"{name} is no PNG ({type(error).__name__}); reload the page") from None
    buffer = io.BytesIO()
    Image.fromarray(255 * painted.astype(np.uint8)).save(buffer, "PNG")
    atomic_write_bytes(path, buffer.getvalue())
    return path


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path)
