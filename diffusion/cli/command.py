"""Commands as functions of explicit, typed arguments, and the command lines that follow from their signatures.

A command is a function in `diffusion.cli.commands`; its parameters are annotated `Annotated[type, Option(help)]`, by the names of
`diffusion.cli.options`. The parameter `batch_size` is `--batch-size` on the command line, `Option(positional=True)` has no dashes.
The docstring is the help; what follows a line `Examples:` is shown at its end. `checked` holds a call from Python to the same
types and choices as a command line.
"""

from __future__ import annotations

import argparse
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from numbers import Number
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from diffusion.cli.parser import (
    DEVICES,
    Parser,
    finite_float,
    output_file,
    output_folder,
    output_name,
    path_text,
    seed_int,
    user_path,
)
from diffusion.utils.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
EXAMPLES = "\nExamples:\n"
FOLDERS = ("DIR", "FOLDER", "WORKDIR")  # what stands, in help, for the name of a folder


def _refuse_tokens(text: str) -> str:
    raise argparse.ArgumentTypeError(
        f"got {text}, and tokens have no tissue to score against; sample them first, then give --real and --syn"
    )


# options that published scripts take without a use for them: the first three all do, so that one set serves many calls
UNUSED: dict[str, dict[str, Any]] = {
    "root": {"type": Path},
    "device": {"choices": DEVICES},
    "seed": {"type": seed_int},
    "format": {"choices": ("png", "jpeg")},
    "guidance_interval": {"type": finite_float, "nargs": 2},
    "tokens": {"type": _refuse_tokens, "nargs": "+"},
}


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
    """A parameter of a command: what argparse is to know of it. default: `inspect.Parameter.empty` where it must be given.

    kind: its type, without the None that it may be if it is optional.
    """

    name: str
    option: Option
    default: Any
    kind: Any = str
    optional: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)

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
        return self.option.completion(_element_kind(self.kind))

    def convert(self, value: Any) -> Any:
        """Return a value of a call from Python as the command takes it. Raises InputError that names the option."""
        if value is None and (self.optional or self.default is None):
            return None
        try:
            return _convert(self.kind, self.option, value)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise InputError(f"{self.label}: {error}") from None


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
        keywords = _argparse_keywords(kind, option)
        found.append(Parameter(name, option, parameter.default, kind, optional, keywords))
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


def _is_sequence(kind: Any) -> bool:
    origin = get_origin(kind)
    return origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence))


def _is_fixed(kind: Any) -> bool:
    """Tell whether a sequence has a certain number of members."""
    return get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis


def _element_kind(kind: Any) -> Any:
    """Return the type of a sequence's members, and any other type itself."""
    return get_args(kind)[0] if _is_sequence(kind) else kind


def _convert(kind: Any, option: Option, value: Any) -> Any:
    """Return a value as one of a type that an option allows. Raises ArgumentTypeError, ValueError."""
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"got {value!r}, expected True or False")
        return value
    if not _is_sequence(kind):
        return _convert_one(kind, option, value)
    if isinstance(value, (str, bytes, os.PathLike)) or not isinstance(value, Iterable):
        raise ValueError(f"got {value!r}, expected a list of such")
    values = list(value)
    if _is_fixed(kind) and len(values) != len(get_args(kind)):
        raise ValueError(f"got {len(values)} values, expected {len(get_args(kind))}")
    found = [_convert_one(_element_kind(kind), option, each) for each in values]
    return tuple(found) if _is_fixed(kind) else found


def _convert_one(kind: Any, option: Option, value: Any) -> Any:
    if _is_optional(kind):
        if value is None:
            return None
        kind = _without_none(kind)
    if _is_sequence(kind) and not isinstance(value, str):  # a member that is one itself; its text has a form of its own
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


def _argparse_keywords(kind: Any, option: Option) -> dict[str, Any]:
    """Return the arguments of add_argument that follow from a type and an option."""
    if kind is bool:
        return {"action": "store_true", "help": option.text}
    keywords: dict[str, Any] = {"help": option.text}
    if _is_sequence(kind):
        keywords["nargs"] = len(get_args(kind)) if _is_fixed(kind) else "+"
        kind = _element_kind(kind)
    if get_origin(kind) is Literal:
        keywords["choices"] = get_args(kind)
        kind = str
    keywords["type"] = option.type or kind
    if option.choices is not None:
        keywords["choices"] = option.choices
    if option.metavar is not None:
        keywords["metavar"] = option.metavar
    return keywords


def describe_command(command: Callable[..., Any]) -> tuple[str, str]:
    """Return the help of a command and its examples: its docstring, before and after the line `Examples:`."""
    text, _, examples = (inspect.getdoc(command) or "").partition(EXAMPLES)
    return text.strip(), examples.rstrip()


def flag_name(parameter: str) -> str:
    """Return the option of a parameter: `--batch-size` of `batch_size`."""
    return f"--{parameter.rstrip('_').replace('_', '-')}"


def build_parser(
    command: Callable[..., Any],
    prog: str,
    flags: Mapping[str, Sequence[str]] | None = None,
    defaults: Mapping[str, Any] | None = None,
    unused: Sequence[str] = (),
    description: str | None = None,
    examples: str | None = None,
    abbreviations: bool = False,
) -> Parser:
    """Return the parser of a command's arguments.

    flags: other options than `flag_name` for some parameters, its name alone: without an option, by its place; none: the
    parameter cannot be given. defaults: other ones than the command's. unused: of UNUSED, options that are accepted, not shown,
    and have no effect. description, examples: other ones than the docstring's. abbreviations: whether an option may be cut
    short, so that more options could make a command line that was clear ambiguous.
    """
    text, own_examples = describe_command(command)
    parser = Parser(
        text if description is None else description,
        own_examples if examples is None else examples,
        allow_abbrev=abbreviations,
    )
    parser.prog = prog
    groups: dict[str, Any] = {"": parser}
    for parameter in read_parameters(command):
        option, names = parameter.option, (flags or {}).get(parameter.name)
        if names is not None and not names:
            continue
        keywords = dict(parameter.keywords)
        default = (defaults or {}).get(parameter.name, parameter.default)
        required = default is inspect.Parameter.empty
        if not required:
            keywords["default"] = _as_argument(default)
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        target = groups[option.group]
        if (option.positional and names is None) or (names and not names[0].startswith("-")):
            if not required:
                keywords["nargs"] = "*" if keywords.get("nargs") == "+" else "?"
            target.add_argument(parameter.name, **keywords)
        else:
            given = names or (flag_name(parameter.name),)
            target.add_argument(*given, dest=parameter.name, required=required, **keywords)
            parser.add_spellings(given[0], flag_name(parameter.name))
    for name in unused:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **UNUSED[name])
    return parser


def _as_argument(default: Any) -> Any:
    """Return a default as argparse is to have it: a text goes through the option's type, as what a user writes does."""
    return str(default) if isinstance(default, Path) else list(default) if isinstance(default, tuple) else default


def call_command(
    command: Callable[..., Any], parser: Parser, arguments: Sequence[str] | None = None, **keywords: Any
) -> int | None:
    """Call a command with what a command line gives, and keywords beside; return its exit code, None for 0."""
    given = vars(parser.parse_args(arguments))
    names = {parameter.name for parameter in read_parameters(command)}
    plain = inspect.unwrap(command)  # the parser has checked
    return plain(**{name: value for name, value in given.items() if name in names}, **keywords)
