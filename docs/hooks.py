"""What the pages are made of beside their text: the command reference, from the commands' parsers."""

from __future__ import annotations

import html
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusion.cli.command import build_parser, describe_command
from diffusion.cli.commands.table import COMMANDS, load_command

PLACE = "<!-- commands -->"
WIDTH = "82"  # characters of a line of help


def command_reference() -> str:
    """Return the reference of all commands in Markdown: what each does, examples, options."""
    os.environ["COLUMNS"] = WIDTH
    parts = []
    for heading, group in COMMANDS.items():
        parts.append(f"## {heading.capitalize()}")
        for name in group:
            command = load_command(name)
            text, examples = describe_command(command)
            parser = build_parser(command, f"pixcell {name}", description="", examples="")
            options = re.sub(r"^usage:.*?\n\n", "", parser.format_help(), flags=re.DOTALL).strip()
            lines = "\n".join(line.strip() for line in examples.splitlines())
            parts += [f"### pixcell {name}", as_markdown(text), f"```\n{lines}\n```", f"```text\n{options}\n```"]
    return "\n\n".join(parts)


def as_markdown(text: str) -> str:
    """Return plain text so that Markdown shows it as it is."""
    return re.sub(r"([*_`])", r"\\\1", html.escape(text, quote=False))


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the reference where a page asks for it."""
    return markdown.replace(PLACE, command_reference()) if PLACE in markdown else markdown
