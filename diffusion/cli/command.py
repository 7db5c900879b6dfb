"""Commands as functions of explicit, typed arguments, and the command lines that follow from their signatures.

A command is a function in `diffusion.cli.commands`; its parameters are annotated `Annotated[type, Option(help)]`, by the names of
`diffusion.cli.options`. The parameter `batch_size` is `--batch-size` on the command line, `Option(positional=True)` has no dashes.
The docstring is the help; what follows a line `Examples:` is shown at its end.
"""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from diffusion.cli.parser import DEVICES, Parser, finite_float, seed_int

EXAMPLES = "\nExamples:\n"
# options that published scripts take without a use for them: the first three all do, so that one set serves many calls
UNUSED: dict[str, dict[str, Any]] = {
    "root": {"type": Path},
    "device": {"choices": DEVICES},
    "seed": {"type": seed_int},
    "format": {"choices": ("png", "jpeg")},
    "guidance_interval": {"type": finite_float, "nargs": 2},
}


@dataclass(frozen=True)
class Option:
    """How an argument of a command is given on the command line.

    help: what it is, with the default in [brackets] where it is not a plain value. type: converts and checks a text; None:
    the annotation's own type. metavar: what stands for the value in the help. group: the heading of the help to be under.
    """

    help: str
    type: Callable[[str], Any] | None = None
    metavar: str | tuple[str, ...] | None = None
    choices: Sequence[Any] | None = None
    group: str = ""
    positional: bool = False


@dataclass(frozen=True)
class Here:
    """What a command changes of a shared option: `Annotated[options.Workdir, Here("the newest")]`.

    default: what holds without it, in place of what the help has in [brackets].
    """

    default: str = ""
    group: str | None = None
    choices: Sequence[Any] | None = None

    def apply(self, option: Option) -> Option:
        """Return the option as the command has it."""
        changes = {"group": self.group, "choices": self.choices}
        if self.default:
            changes["help"] = f"{option.help.partition(' [')[0]} [{self.default}]"
        return replace(option, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command: what argparse is to know of it. default: `inspect.Parameter.empty` where it must be given."""

    name: str
    option: Option
    default: Any
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def required(self) -> bool:
        """Whether the command cannot be called without it."""
        return self.default is inspect.Parameter.empty


def read_parameters(command: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters of a command but for those that are keywords only, which no command line gives.

    Raises TypeError for one that is not annotated with an `Option`.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            continue
        kind, option = _split_annotation(hints[name])
        if option is None:
            raise TypeError(f"{command.__name__}: {name} has no Option; take one of diffusion.cli.options")
        found.append(Parameter(name, option, parameter.default, _argparse_keywords(kind, option)))
    return found


def _split_annotation(hint: Any) -> tuple[Any, Option | None]:
    """Return the type and the Option of Annotated[type, Option], with what any Here changes; None may be a type beside."""
    option, changes = None, []
    while True:
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            option = next((note for note in notes if isinstance(note, Option)), option)
            changes += [note for note in notes if isinstance(note, Here)]
        elif get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint) and len(get_args(hint)) == 2:
            (hint,) = (member for member in get_args(hint) if member is not NoneType)
        else:
            break
    for change in changes:
        option = change.apply(option) if option else None
    return hint, option


def _argparse_keywords(kind: Any, option: Option) -> dict[str, Any]:
    """Return the arguments of add_argument that follow from a type and an option."""
    if kind is bool:
        return {"action": "store_true", "help": option.help}
    keywords: dict[str, Any] = {"help": option.help}
    if get_origin(kind) is Literal:
        keywords["choices"] = get_args(kind)
        kind = str
    elif (origin := get_origin(kind)) in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        parts = get_args(kind)
        fixed = origin is tuple and parts[-1] is not Ellipsis
        keywords["nargs"] = len(parts) if fixed else "+"
        kind = parts[0]
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
) -> Parser:
    """Return the parser of a command's arguments.

    flags: other options than `flag_name` for some parameters, its name alone: without an option, by its place; none: the
    parameter cannot be given. defaults: other ones
    than the command's. unused: of UNUSED, options that are accepted, not shown, and have no effect. description, examples: other
    ones than the docstring's.
    """
    text, own_examples = describe_command(command)
    parser = Parser(text if description is None else description, own_examples if examples is None else examples)
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
    return command(**{name: value for name, value in given.items() if name in names}, **keywords)
