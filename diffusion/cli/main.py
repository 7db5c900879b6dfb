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
from diffusion.utils.errors import InputError

HEAD = "Generative foundation models for digital pathology: train on your own slides, and sample tissue."


def main() -> int | None:
    """Call the command that the first argument names, and return its exit code."""
    return call(sys.argv[1:])


def call(arguments: Sequence[str]) -> int | None:
    """Call a command with its arguments, as a command line gives them. Raises InputError for a command that is not there."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
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
    command = load_command(name)
    return call_command(command, build_parser(command, f"pixcell {name}"), rest)


def overview() -> str:
    """Return the help of `pixcell` itself: all commands, a line each."""
    lines = [HEAD, "", "usage: pixcell COMMAND [options]; pixcell COMMAND --help shows its options"]
    for heading, group in COMMANDS.items():
        lines += ["", f"{heading}:", *(f"  {name:<12} {text}" for name, (_, text) in group.items())]
    lines += ["", "  completion   Print a script that completes commands and options: pixcell completion bash|zsh|tcsh"]
    return "\n".join(lines)


def full_parser() -> Parser:
    """Return one parser with a subparser for every command, for the completion and the reference."""
    parser = Parser(HEAD)
    parser.prog = "pixcell"
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=cast("Any", lambda parser, **_: parser))
    for group in COMMANDS.values():
        for name, (_, text) in group.items():
            commands.add_parser(name, help=text, parser=build_parser(load_command(name), f"pixcell {name}"))
    return parser


def print_completion(arguments: Sequence[str]) -> int:
    """Print the completion script of a shell."""
    import shtab

    parser = Parser(
        "Print a script that completes commands and options.",
        "  pixcell completion bash > ~/.local/share/bash-completion/completions/pixcell",
    )
    parser.prog = "pixcell completion"
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="for which shell")
    print(shtab.complete(full_parser(), parser.parse_args(arguments).shell))
    return 0


def entry_point() -> None:
    """Be the `pixcell` command."""
    run(main)
