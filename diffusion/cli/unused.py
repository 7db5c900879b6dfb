"""Options that have no effect beside others: commands refuse them, and the published scripts, which took them, say so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion.cli.signature import flag_name, read_parameters
from diffusion.utils.errors import InputError


def refuse_unused(command: Callable[..., Any], given: Mapping[str, Any], reason: str, published: bool = False) -> None:
    """Raise InputError that names the options which have no effect; of a published script, print so.

    given: values by parameter; those that are the command's defaults were not given. reason: why they have no effect.
    """
    defaults = {parameter.name: parameter.default for parameter in read_parameters(command)}
    names = [flag_name(name) for name, value in given.items() if _plain(value) != _plain(defaults[name])]
    if not names:
        return
    message = f"{', '.join(names)}: of no effect {reason}"
    if not published:
        raise InputError(f"{message}; leave it out")
    print(f"note: {message}", file=sys.stderr)


def _plain(value: Any) -> Any:
    """Return a value so that equal ones of a command line and of Python compare as equal."""
    return tuple(value) if isinstance(value, list) else value


def refuse_unused_conditions(
    command: Callable[..., Any],
    images: Sequence[Path],
    tokens: Sequence[Path],
    embedding: Mapping[str, Any],
    indexed: Mapping[str, Any],
    published: bool = False,
    prior: Path | None = None,
) -> None:
    """Refuse options of an index where files condition, and those of embedding where there are no images to embed.

    embedding, indexed: the options of each, as `refuse_unused` takes them.
    """
    given = {
        "--images, which condition": images,
        "--tokens, which condition": tokens,
        "--prior, which conditions": prior,
    }
    named = next((text for text, value in given.items() if value), None)
    if named is not None:
        refuse_unused(command, indexed, f"beside {named}", published)
    if not images:
        refuse_unused(command, embedding, "without --images, which are embedded", published)
