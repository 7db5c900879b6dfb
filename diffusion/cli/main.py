"""pixcell: one command line for everything.

pixcell COMMAND ... calls a function of `diffusion.cli.commands`; nothing large is imported before that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, cast

import diffusion
from diffusion.cli.command import build_parser, call_command
from diffusion.cli.commands.table import COMMANDS, load_command
from diffusion.cli.parser import Parser, run
from diffusion.cli.script import former_names
from diffusion.cli.signature import read_parameters
from diffusion.utils.errors import InputError

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")  # as shtab knows them, which is not imported to say so
COMPLETION = "Print a script that completes commands, options and the names of files"
HEAD = "Generative foundation models for digital pathology: train on your own slides, and sample tissue."


def main() -> int | None:
    """Call the command that the first argument names, and return its exit code."""
    return call(sys.argv[1:])


def call(arguments: Sequence[str]) -> int | None:
    """Call a command with its arguments, as a command line gives them. Raises InputError for a command that is not there."""
    if arguments and arguments[0] == "help":
        arguments = [arguments[1], "--help"] if len(arguments) > 1 else []
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    name, *rest = arguments
    if name in ("--version", "-V"):
        print(f"pixcell {diffusion.__version__}")
        return 0
    if name == "completion":
        return print_completion(rest)
    names = [command for group in COMMANDS.values() for command in group]
    if name not in names:
        near = get_close_matches(name, names, 1)
        raise InputError(f"no command {name!r}; {f'did you mean {near[0]}? ' if near else ''}pixcell --help lists them")
    return call_command(load_command(name), command_parser(name), rest)


def command_parser(name: str) -> Parser:
    """Return the parser of a command, which knows what the published scripts call its options."""
    parser = build_parser(load_command(name), f"pixcell {name}")
    parser.former_names = former_names(name)
    return parser


def overview() -> str:
    """Return the help of `pixcell` itself: all commands, a line each."""
    lines = [HEAD, "", "usage: pixcell COMMAND [options]; pixcell COMMAND --help shows its options"]
    for heading, group in COMMANDS.items():
        lines += ["", f"{heading}:", *(f"  {name:<12} {text}" for name, (_, text) in group.items())]
    lines += ["", f"  completion   {COMPLETION}: pixcell completion {'|'.join(SHELLS)}"]
    return "\n".join(lines)


def full_parser() -> Parser:
    """Return one parser with a subparser for every command, whose options say which names of files complete them."""
    import shtab

    parser = Parser(HEAD)
    parser.prog = "pixcell"
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=cast("Any", lambda parser, **_: parser))
    for group in COMMANDS.values():
        for name, (_, text) in group.items():
            own = command_parser(name)
            kinds = {parameter.name: parameter.completion for parameter in read_parameters(load_command(name))}
            for action in own._actions:
                kind = kinds.get(action.dest, "nothing")
                if kind != "nothing" and not action.choices:
                    cast("Any", action).complete = shtab.FILE if kind == "file" else shtab.DIRECTORY
            commands.add_parser(name, help=text, parser=own)
    commands.add_parser("completion", help=COMPLETION, parser=completion_parser())
    return parser


def completion_parser() -> Parser:
    """Return the parser of `pixcell completion`."""
    parser = Parser(
        f"{COMPLETION}.", "  pixcell completion bash > ~/.local/share/bash-completion/completions/pixcell", False
    )
    parser.prog = "pixcell completion"
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    return parser


def print_completion(arguments: Sequence[str]) -> int:
    """Print the completion script of a shell."""
    shell = completion_parser().parse_args(arguments).shell

    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        raise InputError(f"this version of shtab does not know {shell}; update it with pip install -U shtab")
    print(shtab.complete(full_parser(), shell))
    return 0


def entry_point() -> None:
    """Be the `pixcell` command."""
    run(main)
