"""Types of settings with their ranges, and the one function that checks values against them.

A hint is an ordinary annotation; `Annotated[int, Range(least=1)]` adds a range to it. Numbers are finite everywhere.
"""

from __future__ import annotations

import functools
import math
import operator
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal

from diffusion.utils.errors import InputError

MAX_INT = 2**63 - 1  # of torch's whole numbers
MAX_FLOAT = 3.4e38  # of 32 bits, in which networks compute

_repr = reprlib.Repr()  # of values in messages: a config may be arbitrarily deep, or long
_repr.maxstring = _repr.maxother = 200
_repr.maxlong = 30


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have: from `least` to `most`, above `above`, below `below`.

    symbol: what the number is called in messages; why: what the bound is, added to messages.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    symbol: str = "value"
    why: str = ""

    def holds(self, value: float) -> bool:
        """Return whether a number is in the range."""
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"at least {self.least}, at most {self.most}{self.why}"
        if self.below is not None:
            low = f"{self.least} <=" if self.above is None else f"{self.above} <"
            return f"{low} {self.symbol} < {self.below:.3g}{self.why}"
        bound = f"more than {self.above}" if self.least is None else f"at least {self.least}"
        return bound + self.why


@dataclass(frozen=True)
class NotEmpty:
    """A text of more than blanks, or at least one item."""

    expected: str = "a name that is not empty"

    def holds(self, value: str | tuple) -> bool:
        """Return whether there is more than blanks, or an item."""
        return bool(value.strip() if isinstance(value, str) else value)

    def __str__(self) -> str:
        return self.expected


@dataclass(frozen=True)
class PlainName:
    """A part of a file's name, which leads to no other folder."""

    def holds(self, value: str) -> bool:
        """Return whether the text is such a part."""
        return is_plain_name(value)

    def __str__(self) -> str:
        return "a part of a file's name, without / and \\\\"


class Distinct:
    """Items that are all different."""

    def holds(self, value: tuple) -> bool:
        """Return whether no item is there twice."""
        return len(set(value)) == len(value)

    def __str__(self) -> str:
        return "each once (one is there twice)"


def is_plain_name(text: str) -> bool:
    """Return whether a text can be a part of a file's name, or name one folder."""
    return bool(text.strip()) and text not in (".", "..") and not any(mark in text for mark in "/\\\0\n")


PositiveInt = Annotated[int, Range(least=1)]
NaturalInt = Annotated[int, Range(least=0)]
Count = Annotated[int, Range(least=1, most=2**20)]  # of things that are in memory together
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Seed = Annotated[int, Range(least=0, most=MAX_INT)]
Name = Annotated[str, NotEmpty()]
FilePart = Annotated[str, PlainName()]
Names = Annotated[tuple[Name, ...], NotEmpty("at least one name"), Distinct()]
# what the values of a mask are: 0 and 255 (or 1); numbers of objects; numbers of classes from 1 on; maps from 0 to 1
MaskKind = Literal["binary", "labels", "types", "channels"]


@dataclass(frozen=True)
class Section:
    """A dataclass whose fields are converted to their types and checked when it is made.

    Subclasses override `check` for conditions between fields. Raises InputError naming key, value and range.
    """

    PREFIX: typing.ClassVar[str] = ""  # of its keys, such as "data."

    def __post_init__(self):
        hints = type_hints(type(self))
        for name in (field.name for field in fields(self)):
            object.__setattr__(self, name, convert(getattr(self, name), hints[name], self.PREFIX + name))
        self.check()

    def check(self) -> None:
        """Check the fields against each other. Raises InputError."""


@functools.cache
def type_hints(kind: Any) -> dict[str, Any]:
    """Return the annotations of a class or function with their ranges."""
    return typing.get_type_hints(kind, include_extras=True)


def convert(value: Any, hint: Any, where: str) -> Any:
    """Return a value as its hint has it: lists become tuples, whole numbers floats, `a,b` two names.

    Raises InputError, with `where` in front, for another type and for a value out of its range.
    """
    optional = "" if type(None) not in _union_options(hint) else ", or None"
    for option in _union_options(hint):
        kind, *limits = typing.get_args(option) if typing.get_origin(option) is Annotated else (option,)
        if typing.get_origin(kind) is typing.Literal:
            if value in typing.get_args(kind) and isinstance(value, str):
                return value
            if isinstance(value, str):
                raise InputError(
                    f"{where} {_repr.repr(value)}: expected one of {', '.join(typing.get_args(kind))}{optional}"
                )
        elif _has_kind(value, kind):
            coerced = _coerce(value, kind, where)
            _check_finite(coerced, where)
            for limit in limits:
                if not limit.holds(coerced):
                    raise InputError(f"{where} {_repr.repr(coerced)}: expected {limit}{optional}")
            return coerced
    raise InputError(f"{where} is {_repr.repr(value)}: expected {_describe_hint(hint)}")


def check_whole(value: Any, name: str, least: int = 1) -> int:
    """Return a whole number, also one of numpy, from `least` on. Raises InputError, with the name in front."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= MAX_INT:
        raise InputError(f"{name} {_repr.repr(value)}: expected a whole number of at least {least}")
    return number


def _union_options(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _has_kind(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type, or can stand for one; True and False are not numbers."""
    base = typing.get_origin(kind) or kind
    if base is Any:
        return True
    if isinstance(value, bool):
        return base is bool
    if base is tuple:
        return isinstance(value, (list, tuple)) or (isinstance(value, str) and _is_tuple_of_names(kind))
    if base is float:
        return isinstance(value, (int, float))
    return isinstance(value, Mapping if base is dict else base)


def _coerce(value: Any, kind: Any, where: str) -> Any:
    base = typing.get_origin(kind) or kind
    if base is tuple:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        kinds = typing.get_args(kind)
        if Ellipsis not in kinds and len(parts) != len(kinds):
            raise InputError(f"{where} has {len(parts)} values: expected {len(kinds)}")
        return tuple(convert(part, kinds[0], where) for part in parts)
    if base is dict:
        return dict(value)
    if base is float:
        try:
            return float(value)
        except OverflowError:
            raise InputError(f"{where} {_repr.repr(value)}: expected a number that is finite") from None
    return value


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not abs(value) <= MAX_FLOAT:
        raise InputError(
            f"{where} {value}: expected a number that is finite{' in 32 bits' if math.isfinite(value) else ''}"
        )
    if isinstance(value, int) and abs(value) > MAX_INT:
        raise InputError(f"{where} {_repr.repr(value)}: expected at most {MAX_INT}")


def _is_tuple_of_names(kind: Any) -> bool:
    part = typing.get_args(kind)[0]
    return part is str or str in typing.get_args(part) or typing.get_origin(part) is typing.Literal


def _describe_hint(hint: Any) -> str:
    return " or ".join(_describe_kind(option) for option in _union_options(hint))


def _describe_kind(kind: Any) -> str:
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if kind is type(None):
        return "None"
    if is_dataclass(kind):
        return f"dict({', '.join(f'{field.name}=...' for field in fields(kind))})"
    if typing.get_origin(kind) is tuple:
        return f"a tuple of {_describe_kind(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    if kind is bool:
        return "bool, True or False"
    return getattr(kind, "__name__", str(kind))
