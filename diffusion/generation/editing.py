"""Edits of pictures without training: image to image, inpainting, outpainting, super-resolution, other embeddings.

All are one thing: a picture, a mask of what changes in it, and embeddings of its windows, from which the network samples the part
that changes; the rest is kept in the latents at every step, and pixel for pixel in the result.

Letters: H W pixels of a picture, R x K windows of 256 pixels, D width of an embedding, k factor of a super-resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from diffusion.condition import Condition
from diffusion.data.slides.reader import PlainImage
from diffusion.filling import fill_with_tissue, paste_seamlessly
from diffusion.formats import EDIT_STRENGTH, ENLARGE_STRENGTH, WINDOW
from diffusion.generation.colours import ColourMatch
from diffusion.generation.conditions import slerp
from diffusion.generation.controls import check_controlled, encode_picture, to_control
from diffusion.generation.enlarging import agree_with
from diffusion.generation.generators import LargeImageMaker
from diffusion.generation.regions import Region, embed_region
from diffusion.generation.session import Session
from diffusion.inpainting import KnownLatents, change_of_cells
from diffusion.sampling import OnStep, check_edit_strength, count_started_steps
from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError

CONTEXT = 64  # pixels around what changes that the network sees, at least


class Box(NamedTuple):
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return its rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class Canvas:
    """A picture to edit, uint8 (H, W, 3), and where it changes, bool (H, W); None: everywhere.

    control: what a ControlNet reads, of the picture's size: a mask (H, W), maps (K, H, W), or a picture, uint8 (H, W, 3).
    coarse: the picture of a super-resolution, uint8 (H/k, W/k, 3), which the means of the result are to be.
    Raises InputError for other shapes, and a change of nothing or of all.
    """

    pixels: np.ndarray
    change: np.ndarray | None = None
    control: np.ndarray | None = None
    coarse: np.ndarray | None = None

    def __post_init__(self):
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise InputError(
                f"a picture of {self.pixels.dtype} {self.pixels.shape}: expected RGB, uint8 (height, width, 3)"
            )
        if self.change is not None:
            self._check_size(self.change.shape, "a mask of what changes")
            if not self.change.any():
                raise InputError("the mask of what changes is empty: nothing would change")
            if self.change.all():
                raise InputError("the mask of what changes is of all of the picture: leave it out, or keep a part")
        if self.control is not None:
            colours = self.control.ndim == 3 and self.control.shape[2] == 3
            self._check_size(self.control.shape[:2] if colours else self.control.shape[-2:], "a control")

    def _check_size(self, found: tuple[int, ...], name: str) -> None:
        if len(found) != 2:
            raise InputError(f"{name} has the shape {tuple(found)}: expected (height, width)")
        if tuple(found) != self.pixels.shape[:2]:
            sides, wanted = (" x ".join(map(str, reversed(shape[:2]))) for shape in (found, self.pixels.shape))
            raise InputError(f"{name} has {sides} pixels: expected {wanted}, as the picture")

    def choose_area(self, own_size: int) -> Box:
        """Return the part that the network sees: what changes and its surroundings, in multiples of 256 pixels, `own_size` at least."""
        height, width = self.pixels.shape[:2]
        if self.change is None:
            return Box(0, 0, width, height)
        rows, columns = np.flatnonzero(self.change.any(1)), np.flatnonzero(self.change.any(0))
        left, wide = _choose_span(columns[0], columns[-1] + 1, width, own_size)
        top, high = _choose_span(rows[0], rows[-1] + 1, height, own_size)
        return Box(left, top, wide, high)


def _choose_span(first: int, last: int, length: int, least: int) -> tuple[int, int]:
    """Return start and length of a part of an axis around first to last, in multiples of 256 where the axis is as long."""
    wanted = max(least, -(-(last - first + 2 * CONTEXT) // WINDOW) * WINDOW)
    if wanted >= length:
        return 0, length
    start = (first + last - wanted) // 2
    return int(min(max(start, 0), length - wanted)), wanted


@dataclass(frozen=True)
class Look:
    """An embedding (D,) that conditions windows instead of their own, or on the way to it.

    amount: how far on the arc from their own to this one, 1: all of it. where: bool (H, W), the changing pixels whose windows it
    conditions; None: all that change. Raises InputError for an amount outside of 0 to 1.
    """

    embedding: torch.Tensor
    amount: float = 1.0
    where: np.ndarray | None = None

    def __post_init__(self):
        if not 0 <= self.amount <= 1:
            raise InputError(f"a look of {self.amount:g}: expected 0, the picture's own embedding, to 1, the look's")


@dataclass(frozen=True)
class EditSettings:
    """How pictures are edited.

    strength: share of the solver's steps that are taken from the picture's latents on, with noise on them (SDEdit, Meng et al. 2022): 0
    is the codec's reconstruction, 1 keeps nothing of what changes. stride: latent cells between windows of the network; None: half of
    them. batch_size: windows in one pass. Raises InputError for a strength outside of 0 to 1.
    """

    strength: float = 1.0
    stride: int | None = None
    batch_size: int = 1
    decode_tile: int = 64

    def __post_init__(self):
        check_edit_strength(self.strength)


def choose_strength(given: float | None, changes_part: bool, enlarged: int, extends: bool) -> float:
    """Return the strength of an edit; None: what a mask covers is sampled anew, and what is enlarged changes little.

    Raises InputError for one below 1 where the picture is extended.
    """
    if given is None:
        return 1.0 if changes_part else ENLARGE_STRENGTH if enlarged != 1 else EDIT_STRENGTH
    if extends and given < 1:
        raise InputError(f"strength {given:g}: what is added has nothing that could be kept; leave it out, or take 1")
    return given


def check_matched(changes_part: bool, enlarges: bool) -> None:
    """Raise InputError where colours cannot be matched: what fits into the rest of a picture has its colours, as what is enlarged has."""
    if changes_part:
        raise InputError(
            "--match-colours: what changes in a part has the colours around it; match those of the whole picture in a call of its own"
        )
    if enlarges:
        raise InputError("--match-colours: the colours of a super-resolution are those of the picture; leave it out")


def add_embeddings(terms: Sequence[tuple[torch.Tensor, float]]) -> torch.Tensor | None:
    """Return the sum of embeddings (D,), each times a number; None without any."""
    return sum((amount * embedding for embedding, amount in terms), torch.zeros(())) if terms else None


class Editor:
    """Edits pictures with a session's network. colours: what the sampled pixels' colours are matched to; None: they stay.

    added: an embedding (D,) that is added to those of the windows that change, whose lengths stay.
    """

    def __init__(
        self,
        session: Session,
        settings: EditSettings,
        colours: ColourMatch | None = None,
        added: torch.Tensor | None = None,
    ):
        run = session.run
        self.session, self.settings, self.colours, self.added = session, settings, colours, added
        solver = replace(session.solver, start_strength=settings.strength or 1.0)
        stride = settings.stride or run.config.input_size // 2
        self.make = LargeImageMaker(
            run, session.codec, session.seed, solver, stride, settings.batch_size, settings.decode_tile
        )
        self.make.windows(1, 1)  # a stride that leaves gaps is refused before anything is written

    @property
    def steps(self) -> int:
        """Return the steps of the solver that are taken for a picture."""
        strength = self.settings.strength
        return count_started_steps(strength, self.session.solver.taken_steps) if strength else 0

    @property
    def record(self) -> dict[str, Any]:
        """Return what identifies how pictures are edited."""
        session, colours = self.session, self.colours
        return {
            **session.settings,
            "encoder": [session.embedder.name, session.embedder.fingerprint],
            "strength": self.settings.strength,
            "stride": self.make.stride,
            "decode_tile": self.settings.decode_tile,
            **({} if colours is None else {"colours": [colours.method, colours.fingerprint]}),
            **({} if self.added is None else {"added": fingerprint_tensors({"added": self.added})}),
        }

    def edit(
        self, canvas: Canvas, number: int = 0, looks: Sequence[Look] = (), on_step: OnStep | None = None
    ) -> np.ndarray:
        """Return the edited picture, uint8 (H, W, 3), equal to the canvas where it does not change.

        number: of the picture, from which its noise follows. At strength 1 nothing beneath a mask is read, not even for embeddings.
        Raises InputError.
        """
        if self.colours is not None:
            check_matched(canvas.change is not None, canvas.coarse is not None)
        box = canvas.choose_area(self.session.run.config.image_size)
        area = self.prepare(canvas, box)
        latents = area.latents
        if self.settings.strength > 0:
            condition = Condition(self.condition_tokens(area, box, looks)[None], self._control(canvas, box))
            known = None
            if area.change is not None:
                known = KnownLatents(latents, change_of_cells(torch.from_numpy(area.change)[None]))
            start = latents if self.settings.strength < 1 else None
            latents = self.make.latents([number], condition, on_step, start=start, known=known)
        return self.finish(canvas, box, latents)

    def prepare(self, canvas: Canvas, box: Box) -> Area:
        """Return the part of a canvas that the network sees, filled up to whole windows, with its latents."""
        own_size, session = self.session.run.config.image_size, self.session
        pixels, change = canvas.pixels[box.slices], None if canvas.change is None else canvas.change[box.slices]
        if change is not None and self.settings.strength == 1:
            pixels = fill_with_tissue(pixels, change)
        shown = fill_up(pixels, own_size)
        change = None if change is None else fill_up(change, own_size)
        return Area(shown, change, encode_picture(shown, session.codec, session.device, own_size))

    def condition_tokens(self, area: Area, box: Box, looks: Sequence[Look]) -> torch.Tensor:
        """Return the embeddings (R, K, D) that condition an area's windows."""
        own_size = self.session.run.config.image_size
        rows, columns = (side // WINDOW for side in area.pixels.shape[:2])
        whole = PlainImage.from_image(Image.fromarray(area.pixels))
        tokens = embed_region(Region(whole, 0, 0), rows, columns, self.session.embedder)
        change = np.ones(area.pixels.shape[:2], dtype=bool) if area.change is None else area.change
        shares = [_window_shares(change)]
        for look in looks:
            where = change if look.where is None else change & fill_up(look.where[box.slices], own_size)
            shares.append(_window_shares(where))
        for row, column in zip(*np.nonzero(shares[0]), strict=True):
            token = tokens[row, column]
            of_looks = [share[row, column] for share in shares[1:]]
            of_places = [share * (look.where is not None) for share, look in zip(of_looks, looks, strict=True)]
            if of_looks and max(of_looks) > 0:  # a look of a place comes before one of all that changes
                look = looks[int(np.argmax(of_places if max(of_places) > 0 else of_looks))]
                token = slerp(token[None], look.embedding[None].to(token), look.amount)[0]
            if self.added is not None:
                moved = token + self.added.to(token)
                token = moved * (token.norm() / moved.norm())
            tokens[row, column] = token
        return tokens

    def finish(self, canvas: Canvas, box: Box, latents: torch.Tensor, is_preview: bool = False) -> np.ndarray:
        """Return the edited picture of an area's latents: decoded, and put in its place.

        is_preview: whether the latents are on the way to it, so that colours and means are not yet those that they are to be.
        """
        sampled = torch.cat(list(self.make.bands(latents)), dim=1).permute(1, 2, 0).numpy()
        sampled = np.ascontiguousarray(sampled[: box.height, : box.width])
        if self.colours is not None and not is_preview:
            sampled = self.colours.apply(sampled, "what was sampled")
        if canvas.coarse is not None and not is_preview:
            return agree_with(canvas.coarse, sampled, len(sampled) // len(canvas.coarse))
        if canvas.change is None:
            return sampled
        result = canvas.pixels.copy()
        result[box.slices] = paste_seamlessly(canvas.pixels[box.slices], sampled, canvas.change[box.slices])
        return result

    def _control(self, canvas: Canvas, box: Box) -> torch.Tensor | None:
        run = self.session.run
        if canvas.control is None:
            return None
        check_controlled(run)
        values = canvas.control
        of_maps = values.ndim == 3 and values.shape[2] != 3
        part = fill_up((values.transpose(1, 2, 0) if of_maps else values)[box.slices], run.config.image_size)
        size = part.shape[0], part.shape[1]
        part = part.transpose(2, 0, 1) if of_maps else part
        return to_control(np.ascontiguousarray(part), run, self.session.codec, size, "the control")


class Area(NamedTuple):
    """The part of a canvas that the network sees, uint8 (H, W, 3), in whole windows, and where it changes, bool (H, W); None: everywhere.

    What is not to be read is filled with tissue already. latents (1, C, H/8, W/8): network latents of the pixels.
    """

    pixels: np.ndarray
    change: np.ndarray | None
    latents: torch.Tensor


def _window_shares(mask: np.ndarray) -> np.ndarray:
    """Return which share of each window a mask (H, W) covers, (R, K)."""
    height, width = mask.shape
    return mask.reshape(height // WINDOW, WINDOW, width // WINDOW, WINDOW).mean((1, 3))


def fill_up(values: np.ndarray, least: int) -> np.ndarray:
    """Return a picture or mask whose sides are multiples of 256, `least` at least: it is mirrored below and to its right."""
    wanted = (max(least, -(-side // WINDOW) * WINDOW) for side in values.shape[:2])
    beyond = [(0, goal - side) for goal, side in zip(wanted, values.shape[:2], strict=True)]
    return np.pad(values, [*beyond, *[(0, 0)] * (values.ndim - 2)], mode="symmetric")
