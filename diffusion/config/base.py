"""Makes configs/_base_.py from the settings and their documentation: python -m diffusion.config.base"""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.config.settings import Config, TrainingConfig
from diffusion.utils.values import Section, type_hints

BASE_FILE = Path(__file__).resolve().parents[2] / "configs" / "_base_.py"
WIDTH = 120  # characters of a line
HEAD = """\
# Every key the trainer reads, with the value it has when a config does not set it.
# Made from diffusion/config/settings.py, which has every key's type and range, by `python -m diffusion.config.base`.
# Paths may begin with ~ and have $NAME in them, as in a shell.
"""


class Key(NamedTuple):
    """A field of a settings class: its documentation, and the heading of the group that it begins, if it begins one."""

    name: str
    doc: str
    heading: str


def documented_keys(kind: type[Section]) -> list[Key]:
    """Return a class's own fields in their order, each with the string below it. Raises ValueError for one without."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    keys = []
    for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name, above = statement.target.id, lines[statement.lineno - 2].strip()
        if not isinstance(following, ast.Expr) or not isinstance(following.value, ast.Constant):
            raise ValueError(f"{kind.__name__}.{name} has no documentation below it")
        doc = " ".join(str(following.value.value).split())
        keys.append(Key(name, doc, above.removeprefix("# ") if above.startswith("#") else ""))
    return keys


def base_file() -> str:
    """Return the content of configs/_base_.py: each key with its default and its documentation."""
    defaults, parts = Config(), [HEAD]
    for kind in (Config, TrainingConfig):
        hints = type_hints(kind)
        for key in documented_keys(kind):
            if key.heading or key == documented_keys(kind)[0]:
                parts.append(f"\n# --- {key.heading} ---\n" if key.heading else "\n")
            value = getattr(defaults, key.name)
            if is_dataclass(hints[key.name]):
                parts += [*_comment(key.doc), f"{key.name} = dict(\n", *_section(value), ")\n"]
            else:
                text = _literal(value)
                if _takes_dict(hints[key.name]):
                    text = "dict()"  # mmengine merges a dict into no None
                elif key.name == "task":
                    text = f"dict(type={text})"  # nor into a text
                parts += _assignment(f"{key.name} = {text}", key.doc)
    return "".join(parts)


def _section(value: Any) -> list[str]:
    inherited = [kind for kind in type(value).__mro__ if issubclass(kind, Section) and kind is not Section]
    docs = {key.name: key.doc for kind in inherited for key in documented_keys(kind)}
    return [
        line
        for field in fields(value)
        for line in _assignment(f"{field.name}={_literal(getattr(value, field.name))},", docs[field.name], " " * 4)
    ]


def _assignment(code: str, doc: str, indent: str = "") -> list[str]:
    """Return lines of a key: its comment behind it where that fits, else above it."""
    line = f"{indent}{code}  # {doc}\n"
    return [line] if len(line) <= WIDTH + 1 else [*_comment(doc, indent), f"{indent}{code}\n"]


def _comment(doc: str, indent: str = "") -> list[str]:
    return [
        f"{line}\n" for line in textwrap.wrap(doc, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
    ]


def _takes_dict(hint: Any) -> bool:
    return dict in [typing.get_origin(option) for option in (hint, *typing.get_args(hint))]


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        items = ", ".join(_literal(item) for item in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    BASE_FILE.write_text(base_file())
    print(BASE_FILE)
