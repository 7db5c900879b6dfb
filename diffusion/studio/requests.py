"""What the page asks for: checked, and turned into the work of `pixcell edit` or `pixcell stain` and into the command that does the same.

Letters: H W pixels of what is selected.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusion.utils.errors import InputError
from diffusion.utils.values import convert, type_hints

Action = Literal["sample", "vary", "repair", "extend", "enlarge", "colours", "stain"]
SIDES = (64, 4096)  # pixels of what may be selected at once
RESULT_SIDE = 8192  # pixels of a result, at most
MAX_LORAS = 8


@dataclass(frozen=True)
class LookRequest:
    """What conditions instead of the selection: one of the stored embeddings, a result, or the 256 pixels around a place of a picture.

    x, y: the middle, in pixels of the finest level. amount: how far on the way to it.
    """

    kind: Literal["stored", "result", "place"]
    name: str = ""
    x: int = 0
    y: int = 0
    amount: float = 1.0


@dataclass(frozen=True)
class JobRequest:
    """A job of the page. part: left and top in pixels of the finest level, width and height as the picture is read.

    seed and others as the options of `pixcell edit`; None: what the command has. mask, control: PNG files as base64, of the
    selection's size. loras: how much each of the studio's adapters counts, by its number. structure: of stain.
    """

    action: Action
    picture: str
    part: tuple[int, int, int, int]
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    strength: float | None = None
    look: LookRequest | None = None
    mask: str | None = None
    control: str | None = None
    control_scale: float = 1.0
    extend: tuple[int, int, int, int] | None = None
    enlarge: int = 2
    loras: tuple[float, ...] = ()
    colours: LookRequest | None = None
    colour_method: Literal["reinhard", "macenko"] = "reinhard"
    structure: Literal["none", "sdedit", "control"] = "sdedit"

    @classmethod
    def read(cls, content: Any) -> JobRequest:
        """Return the request of a page. Raises InputError that names what is wrong."""
        request = _read(cls, content, "the request")
        check_selection(*request.part)
        _, _, width, height = request.part
        if len(request.loras) > MAX_LORAS:
            raise InputError(f"{len(request.loras)} adapters: expected at most {MAX_LORAS}")
        if request.seed < 0 or request.seed >= 2**53:
            raise InputError(f"seed {request.seed}: expected a whole number from 0 on")
        if request.steps is not None and not 1 <= request.steps <= 1000:
            raise InputError(f"{request.steps} steps: expected 1 to 1000")
        if request.enlarge not in (2, 4):
            raise InputError(f"enlarged {request.enlarge} times: expected 2 or 4")
        if request.action == "repair" and request.mask is None:
            raise InputError("nothing is painted: paint what is to be replaced, with the brush or the polygon")
        if request.action == "extend":
            if request.extend is None or not any(request.extend):
                raise InputError("nothing is added: give pixels for a side at least")
            if min(request.extend) < 0 or max(request.extend) > SIDES[1]:
                raise InputError(f"extended by {request.extend}: expected 0 to {SIDES[1]} pixels a side")
        larger = request.enlarge if request.action == "enlarge" else 1
        left, top, right, bottom = (request.extend or (0, 0, 0, 0)) if request.action == "extend" else (0, 0, 0, 0)
        if max(larger * width + left + right, larger * height + top + bottom) > RESULT_SIDE:
            raise InputError(f"a result of more than {RESULT_SIDE} pixels a side: take a smaller selection")
        if request.action == "colours" and request.colours is None:
            raise InputError("no reference: choose the picture whose colours are to be taken")
        return request


def check_selection(left: int, top: int, width: int, height: int) -> None:
    """Raise InputError for a part of a picture that is too small, too large, or begins before it."""
    low, high = SIDES
    if not (0 <= left < 10**9 and 0 <= top < 10**9 and low <= width <= high and low <= height <= high):
        raise InputError(f"a selection of {width} x {height} pixels: expected {low} to {high} a side")


def _read(kind: type, content: Any, where: str) -> Any:
    """Return a dataclass of what JSON gave, each field by its type. Raises InputError."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where} is {type(content).__name__}: expected an object")
    fields = {each.name: each for each in dataclasses.fields(kind)}
    if unknown := sorted(map(str, content.keys() - fields.keys())):
        raise InputError(f"{where} has no field {unknown[0][:40]}")
    hints, values = type_hints(kind), {}
    for name, each in fields.items():
        if name not in content:
            if each.default is dataclasses.MISSING:
                raise InputError(f"{where} lacks {name}")
            continue
        value = content[name]
        if name in ("look", "colours"):
            values[name] = None if value is None else _read(LookRequest, value, name)
        else:
            values[name] = convert(value, hints[name], name)
    return kind(**values)


def format_command(name: str, pictures: Sequence[Path], options: Mapping[str, Any]) -> str:
    """Return a command line of `pixcell`. options: by parameter; None and empty ones are left out."""
    words = ["pixcell", name, *(str(path) for path in pictures)]
    for parameter, value in options.items():
        if value is None or value is False or value == ():
            continue
        words.append(f"--{parameter.replace('_', '-')}")
        if isinstance(value, (tuple, list)):
            words += [_word(each) for each in value]
        elif value is not True:
            words.append(_word(value))
    return shlex.join(words)


def _word(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
