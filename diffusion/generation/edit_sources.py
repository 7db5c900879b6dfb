"""What is edited, read from files: pictures and parts of slides, masks and outlines of what changes, embeddings to condition by.

Letters: H W pixels of a picture, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from diffusion.data.features.masks import check_grey, read_mask_image
from diffusion.data.images import open_image
from diffusion.data.nuclei.annotations import draw_outlines, read_outlines
from diffusion.data.slides.parts import check_area, read_part
from diffusion.data.slides.reader import PlainImage, open_any
from diffusion.formats import WINDOW
from diffusion.generation.conditions import embed_square, middle_square, read_numbers
from diffusion.generation.controls import read_picture
from diffusion.generation.editing import Box, Canvas, Look
from diffusion.generation.enlarging import enlarge
from diffusion.generation.session import Session, split_scale
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.text import abbreviate

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
WHITE = 255  # of a picture's new parts, which are sampled


@dataclass(frozen=True)
class EditSource:
    """A picture to edit, and what of it changes: a mask, outlines, a box or new margins; none of them: all.

    part: left and top in pixels of the finest level, width and height as it is read at `mpp`; None: all. image_mpp: microns per pixel
    of the file, whatever it says itself. outlines: GeoJSON and the like, in pixels of the finest level; classes: those that change, none:
    all. box: left, top, width, height in pixels of the picture. extend: pixels that are added to the left, top, right and bottom.
    enlarge: 2 or 4, of super-resolution. control: what a ControlNet reads, of the result's size.
    Raises InputError for several of mask, outlines, box, extend and enlarge.
    """

    path: Path
    part: tuple[int, int, int, int] | None = None
    mpp: float = 0.5
    image_mpp: float | None = None
    mask: Path | None = None
    outlines: Path | None = None
    classes: Sequence[str] = ()
    box: tuple[int, int, int, int] | None = None
    extend: tuple[int, int, int, int] | None = None
    enlarge: int = 1
    control: Path | None = None

    def __post_init__(self):
        given = {
            "--mask": self.mask,
            "--outlines": self.outlines,
            "--box": self.box,
            "--extend": self.extend,
            "--enlarge": self.enlarge if self.enlarge != 1 else None,
        }
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise InputError(f"{' and '.join(named)}: one of them says what changes; give one")
        if self.classes and self.outlines is None:
            raise InputError("--outline-classes are those of --outlines; give them, too")
        if self.extend is not None and not any(self.extend):
            raise InputError("--extend 0 0 0 0: nothing is added; give pixels for a side at least")

    @property
    def changes_part(self) -> bool:
        """Tell whether only a part of the picture changes."""
        return any(each is not None for each in (self.mask, self.outlines, self.box, self.extend))


@dataclass(frozen=True)
class OpenedEdit:
    """A picture to edit in memory.

    kinds: where the outlines of each class are, bool (H, W). mpp: microns per pixel of the result.
    """

    canvas: Canvas
    mpp: float
    kinds: Mapping[str, np.ndarray] = field(default_factory=dict)


def open_edit(source: EditSource) -> OpenedEdit:
    """Read a picture and what of it changes. Raises MissingError, InputError."""
    with open_any(source.path, source.mpp, source.image_mpp) as slide:
        pixels, place = read_part(slide, source.path, source.part)
        factor = slide.factor
    left, top, right, bottom = source.extend or (0, 0, 0, 0)
    height, width = pixels.shape[:2]
    result = source.enlarge * (width + left + right), source.enlarge * (height + top + bottom)
    check_area(f"the result of {source.path}", *result)
    control = None if source.control is None else read_control_file(source.control)
    if source.enlarge != 1:
        canvas = Canvas(enlarge(pixels, source.enlarge), control=control, coarse=pixels)
        return OpenedEdit(canvas, source.mpp / source.enlarge)
    kinds: dict[str, np.ndarray] = {}
    change = None
    if source.mask is not None:
        change = read_change(source.mask)
    elif source.outlines is not None:
        kinds = draw_kinds(source, (place.left * factor, place.top * factor), 1 / factor, pixels.shape[:2])
        change = np.logical_or.reduce(list(kinds.values()))
        if not change.any():
            raise InputError(f"{source.outlines}: no outline reaches into the picture, nothing would change")
    elif source.box is not None:
        change = np.zeros(pixels.shape[:2], dtype=bool)
        box = check_box(source.box, pixels)
        change[box.slices] = True
    elif source.extend is not None:
        pixels, change = extend_picture(pixels, source.extend)
    return OpenedEdit(Canvas(pixels, change, control), source.mpp, kinds)


def read_change(path: Path) -> np.ndarray:
    """Read where a picture changes, bool (H, W): where a mask is not 0; of one with a transparent part, where it is painted.

    Of a JPEG, which is never quite black, where it is rather white; of a palette, its colours count, not their numbers.
    Raises MissingError, and InputError for a mask of several colours without a transparent part.
    """
    image = open_image(path)
    if image.mode in ("P", "PA", "LA", "RGBA"):
        values = np.asarray(image.convert("RGBA"))
        alpha = values[..., 3]
        if alpha.min() < WHITE:
            return alpha > WHITE // 2
        check_grey(values, path)
        return values[..., 0] > 0
    return read_mask_image(path) > (WHITE // 2 if path.suffix.lower() in (".jpg", ".jpeg") else 0)


def check_box(box: Sequence[int], pixels: np.ndarray) -> Box:
    """Return a box within a picture. Raises InputError for one that is not."""
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1 or left + width > pixels.shape[1] or top + height > pixels.shape[0]:
        raise InputError(
            f"--box {left} {top} {width} {height}: expected a part of the picture's {pixels.shape[1]} x {pixels.shape[0]} pixels"
        )
    return Box(left, top, width, height)


def extend_picture(pixels: np.ndarray, sides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture with white pixels added to its left, top, right and bottom, and where these are, bool (H, W)."""
    left, top, right, bottom = sides
    around = ((top, bottom), (left, right))
    change = np.pad(np.zeros(pixels.shape[:2], dtype=bool), around, constant_values=True)
    return np.pad(pixels, (*around, (0, 0)), constant_values=WHITE), change


def draw_kinds(
    source: EditSource, corner: tuple[float, float], scale: float, size: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return where the outlines of each class are in a picture, bool (H, W), by class. Raises MissingError, InputError."""
    assert source.outlines is not None
    outlines = read_outlines(source.outlines)
    known = sorted({outline.kind for outline in outlines})
    if unknown := sorted(set(source.classes) - set(known)):
        raise InputError(
            f"{source.outlines} has no outline of the class {abbreviate(unknown)}; it has {abbreviate([kind or 'none' for kind in known])}"
        )
    found = {}
    for kind in source.classes or known:
        own = [outline for outline in outlines if outline.kind == kind]
        drawn = draw_outlines(own, *corner, scale, max(size))
        found[kind] = drawn[: size[0], : size[1]] > 0
    return found


def read_control_file(path: Path) -> np.ndarray:
    """Read what a ControlNet takes: maps (K, H, W) of a .npy file, a picture, uint8 (H, W, 3), or a mask (H, W)."""
    if path.suffix == ".npy":
        return read_numbers(path).numpy()
    try:
        return read_mask_image(path)
    except MissingError:
        raise
    except InputError:  # of colours
        return read_picture(path)


def match_masks(pictures: Mapping[str, Path], masks: Sequence[Path]) -> dict[str, Path]:
    """Return the mask of each picture by its name: files in the pictures' order, or those of a folder that have their names.

    A mask of a folder may have `_mask` at the end of its name. Raises MissingError for a picture without one, and InputError for
    another number of files.
    """
    if not masks:
        return {}
    if len(masks) == 1 and masks[0].is_dir():
        endings = [f"{end}{suffix}" for end in ("", "_mask") for suffix in MASK_SUFFIXES]
        found = {}
        for name in pictures:
            places = (masks[0] / f"{name}{ending}" for ending in endings)
            found[name] = next((place for place in places if place.is_file()), None)
        missing = [name for name, place in found.items() if place is None]
        if missing:
            raise MissingError(f"{masks[0]} has no mask of {abbreviate(missing)}; a mask has the picture's name")
        return {name: place for name, place in found.items() if place is not None}
    if len(masks) != len(pictures):
        raise InputError(
            f"{len(masks)} masks for {len(pictures)} pictures: expected one for each, or a folder of masks of their names"
        )
    return dict(zip(pictures, masks, strict=True))


@dataclass(frozen=True)
class LookFile:
    """An embedding to condition by, from an image or a .npy file. kind: the class of the outlines that it is for; None: all that changes.

    amount: how far on the way to it, from 0 to 1; of a sum, what it is multiplied by.
    """

    path: Path
    amount: float = 1.0
    kind: str | None = None


def parse_look(text: str, option: str) -> LookFile:
    """Read `[CLASS=]FILE[:AMOUNT]`. Raises InputError for an amount that is no number."""
    path, value = split_scale(text, option, "amount")
    kind = ""
    if not path.is_file() and "=" in text:  # the name of a file may have the sign, too
        kind, _, rest = text.partition("=")
        path, value = split_scale(rest, option, "amount")
    if option == "--look" and not 0 <= value <= 1:
        raise InputError(f"--look {text}: expected 0, the picture's own embedding, to 1, that of the file")
    return LookFile(path, value, kind or None)


def load_embedding(path: Path, session: Session) -> torch.Tensor:
    """Return the embedding (D,) of the middle 256 pixels of an image, or of a .npy file. Raises MissingError, InputError."""
    width = session.run.config.caption_channels
    if path.suffix == ".npy":
        values = read_numbers(path, "embeddings")
        if values.numel() != width or values.shape[-1] != width:
            raise InputError(f"{path} holds {tuple(values.shape)}: expected one embedding, ({width},)")
        return values.flatten()
    with closing(PlainImage(path)) as image:
        named = embed_square(middle_square(image, WINDOW, str(path)), session.embedder, WINDOW, path.stem)
    return named.condition.tokens[0, 0]


def choose_looks(files: Sequence[LookFile], embeddings: Mapping[Path, torch.Tensor], opened: OpenedEdit) -> list[Look]:
    """Return the looks of a picture. Raises InputError for one of a class that its outlines do not have."""
    looks = []
    for each in files:
        if each.kind is not None and each.kind not in opened.kinds:
            known = abbreviate(sorted(kind or "none" for kind in opened.kinds)) or "none, without --outlines"
            raise InputError(f"--look {each.kind}={each.path}: no such class of what changes; there is {known}")
        where = None if each.kind is None else opened.kinds[each.kind]
        looks.append(Look(embeddings[each.path], each.amount, where))
    if sum(look.where is None for look in looks) > 1:
        raise InputError("--look: several of all that changes; give one, and others as CLASS=FILE of outlines")
    return looks
