"""What the signature of a command says of its arguments, for the command line and for calls from Python.

A command is a function in `diffusion.cli.commands`; its parameters are annotated `Annotated[type, Option(help)]`, by the names of
`diffusion.cli.options`. `checked` holds calls from Python to what the command line would take.
"""

from __future__ import annotations

import argparse
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from numbers import Number
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from diffusion.cli.parser import output_file, output_folder, output_name, path_text, user_path
from diffusion.utils.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
FOLDERS = ("DIR", "FOLDER", "WORKDIR")  # what stands, in help, for the name of a folder


@dataclass(frozen=True)
class Option:
    """How an argument of a command is given on the command line.

    help: what it is, with the default in [brackets] where it is not a plain value. type: converts and checks a text; None:
    the annotation's own type. metavar: what stands for the value in the help. group: the heading of the help to be under.
    note: what a command has to add, with its own punctuation. completes: what names a shell offers, None: those that follow from
    type and metavar.
    """

    help: str
    type: Callable[[str], Any] | None = None
    metavar: str | tuple[str, ...] | None = None
    choices: Sequence[Any] | None = None
    group: str = ""
    positional: bool = False
    note: str = ""
    completes: Literal["file", "folder", "nothing"] | None = None

    @property
    def text(self) -> str:
        """Return the help as a command shows it: what it is, the command's note, and the default."""
        help, bracket, default = self.help.partition(" [")
        return f"{help}{self.note}{bracket}{default}"

    def completion(self, kind: Any) -> str:
        """Return what names a shell is to offer for a value of this type: of a `file`, a `folder`, or `nothing`."""
        if self.completes is not None:
            return self.completes
        if self.type is output_folder or (self.metavar in FOLDERS and kind is not str):
            return "folder"
        if self.type is path_text:
            return "folder" if self.metavar in FOLDERS else "file"
        return "file" if kind is Path or self.type in (output_file, output_name) else "nothing"


@dataclass(frozen=True)
class Here:
    """What a command changes of a shared option: `Annotated[options.Workdir, Here("the newest")]`.

    default: what holds without it, in place of what the help has in [brackets]. note: what the command has to add, with its own
    punctuation.
    """

    default: str = ""
    group: str | None = None
    choices: Sequence[Any] | None = None
    note: str | None = None

    def apply(self, option: Option) -> Option:
        """Return the option as the command has it."""
        changes = {"group": self.group, "choices": self.choices, "note": self.note}
        if self.default:
            changes["help"] = f"{option.help.partition(' [')[0]} [{self.default}]"
        return replace(option, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command: its option and its type. default: `inspect.Parameter.empty` where it must be given.

    kind: its type, without the None that it may be if it is optional.
    """

    name: str
    option: Option
    default: Any
    kind: Any = str
    optional: bool = False

    @property
    def required(self) -> bool:
        """Tell whether the command cannot be called without it."""
        return self.default is inspect.Parameter.empty

    @property
    def label(self) -> str:
        """Return what messages call it: its option, or its name where it has its place."""
        return self.name if self.option.positional else flag_name(self.name)

    @property
    def completion(self) -> str:
        """Return what names a shell is to offer for it."""
        return self.option.completion(element_kind(self.kind))

    def convert(self, value: Any) -> Any:
        """Return a value of a call from Python as the command takes it. Raises InputError that names the option."""
        if value is None and (self.optional or self.default is None):
            return None
        try:
            return _convert(self.kind, self.option, value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise InputError(f"{self.label}: {error}") from None


def flag_name(parameter: str) -> str:
    """Return the option of a parameter: `--batch-size` of `batch_size`."""
    return f"--{parameter.rstrip('_').replace('_', '-')}"


def read_parameters(command: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters of a command but for those that are keywords only, which no command line gives.

    Raises TypeError for one that is not annotated with an `Option`.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            continue
        kind, optional, option = _split_annotation(hints[name])
        if option is None:
            raise TypeError(f"{command.__name__}: {name} has no Option; take one of diffusion.cli.options")
        found.append(Parameter(name, option, parameter.default, kind, optional))
    return found


def _split_annotation(hint: Any) -> tuple[Any, bool, Option | None]:
    """Return the type, whether it may be None, and the Option of Annotated[type, Option], with what any Here changes."""
    option, changes, optional = None, [], False
    while True:
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            option = next((note for note in notes if isinstance(note, Option)), option)
            changes += [note for note in notes if isinstance(note, Here)]
        elif _is_optional(hint):
            hint, optional = _without_none(hint), True
        else:
            break
    for change in changes:
        option = change.apply(option) if option else None
    return hint, optional, option


def _is_optional(kind: Any) -> bool:
    """Tell whether a type is another one or None."""
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind) and len(get_args(kind)) == 2


def _without_none(kind: Any) -> Any:
    (kind,) = (member for member in get_args(kind) if member is not NoneType)
    return kind


def is_sequence(kind: Any) -> bool:
    """Tell whether a type is that of several values."""
    origin = get_origin(kind)
    return origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence))


def is_fixed(kind: Any) -> bool:
    """Tell whether a sequence has a certain number of members."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis


def element_kind(kind: Any) -> Any:
    """Return the type of a sequence's members, and any other type itself."""
    return get_args(kind)[0] if is_sequence(kind) else kind


def _convert(kind: Any, option: Option, value: Any) -> Any:
    """Return a value as one of a type that an option allows. Raises ArgumentTypeError, ValueError."""
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"got {value!r}, expected True or False")
        return value
    if not is_sequence(kind):
        return _convert_one(kind, option, value)
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
        raise ValueError(f"got {value!r}, expected a list of such")
    values = list(value)
    if is_fixed(kind) and len(values) != len(get_args(kind)):
        raise ValueError(f"got {len(values)} values, expected {len(get_args(kind))}")
    found = [_convert_one(element_kind(kind), option, each) for each in values]
    return tuple(found) if is_fixed(kind) else found


def _convert_one(kind: Any, option: Option, value: Any) -> Any:
    if _is_optional(kind):
        if value is None:
            return None
        kind = _without_none(kind)
    if is_sequence(kind) and not isinstance(value, str):  # a member that is one itself; its text has a form of its own
        return _convert(kind, Option(option.help), value)
    is_text = isinstance(value, (str, os.PathLike))
    is_number = isinstance(value, Number) and not isinstance(value, bool)
    if not is_text and not (is_number and kind in (int, float)):
        wanted = {Path: "a path", int: "a whole number", float: "a number"}.get(kind, "a text")
        raise ValueError(f"got {value!r}, expected {wanted}")
    choices = get_args(kind) if get_origin(kind) is Literal else option.choices
    convert = option.type or (str if get_origin(kind) is Literal else user_path if kind is Path else kind)
    found = convert(os.fspath(value) if is_text else str(value))
    if choices is not None and found not in choices:
        raise ValueError(f"got {value!r}, expected one of {', '.join(map(str, choices))}")
    return found


def checked(command: Callable[P, T]) -> Callable[P, T]:
    """Hold the arguments of a command, when it is called from Python, to the types and choices of its options.

    Texts become paths, and values that its command line would refuse raise InputError with the name of the option.
    """
    signature = inspect.signature(command)

    @wraps(command)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs)
        for parameter in read_parameters(command):
            if parameter.name in given.arguments:
                given.arguments[parameter.name] = parameter.convert(given.arguments[parameter.name])
        return command(*given.args, **given.kwargs)

    return call
