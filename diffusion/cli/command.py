"""The command line of a command: the parser that follows from its signature, and the call.

The parameter `batch_size` is `--batch-size`, `Option(positional=True)` has no dashes. The docstring is the help; what follows a
line `Examples:` is shown at its end.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from diffusion.cli.parser import Parser
from diffusion.cli.signature import Option, element_kind, flag_name, is_fixed, is_sequence, read_parameters

EXAMPLES = "\nExamples:\n"


def _argparse_keywords(kind: Any, option: Option) -> dict[str, Any]:
    """Return the arguments of add_argument that follow from a type and an option."""
    if kind is bool:
        return {"action": "store_true", "help": option.text}
    keywords: dict[str, Any] = {"help": option.text}
    if is_sequence(kind):
        keywords["nargs"] = len(get_args(kind)) if is_fixed(kind) else "+"
        kind = element_kind(kind)
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


def build_parser(
    command: Callable[..., Any],
    prog: str,
    flags: Mapping[str, Sequence[str]] | None = None,
    defaults: Mapping[str, Any] | None = None,
    unused: Mapping[str, Mapping[str, Any]] | None = None,
    description: str | None = None,
    examples: str | None = None,
    abbreviations: bool = False,
) -> Parser:
    """Return the parser of a command's arguments.

    flags: other options than `flag_name` for some parameters, its name alone: without an option, by its place; none: the
    parameter cannot be given. defaults: other ones than the command's. unused: options that are accepted, not shown, and have no
    effect, with their arguments of add_argument. description, examples: other ones than the docstring's. abbreviations: whether
    an option may be cut short, so that more options could make a command line that was clear ambiguous.
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
        keywords = _argparse_keywords(parameter.kind, option)
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
    for name, arguments in (unused or {}).items():
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **arguments)
    return parser


def _as_argument(default: Any) -> Any:
    """Return a default as argparse is to have it: a text goes through the option's type, as what a user writes does."""
    return str(default) if isinstance(default, Path) else list(default) if isinstance(default, tuple) else default


def call_command(
    command: Callable[..., Any], parser: Parser, arguments: Sequence[str] | None = None, **keywords: Any
) -> int | None:
    """Call a command with what a command line gives, and keywords beside; return its exit code, None for 0."""
    given = vars(parser.parse_args(arguments))
    kinds = {parameter.name: parameter.kind for parameter in read_parameters(command)}
    plain = inspect.unwrap(command)  # the parser has checked
    values = {name: value for name, value in given.items() if name in kinds}
    for name, value in values.items():
        if isinstance(value, list) and is_fixed(kinds[name]):
            values[name] = tuple(value)  # as it is from Python
    return plain(**values, **keywords)
