"""What every command line shares: the parser, the common options, types of arguments, and errors of one line."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from diffusion.utils.errors import SYSTEM_ERRORS, InputError
from diffusion.utils.files import check_writable
from diffusion.utils.text import expand_path, is_utf8, printable_name
from diffusion.utils.threads import limit_spinning
from diffusion.utils.values import MAX_FLOAT, is_plain_name

limit_spinning()  # every command line imports this module before anything that loads torch

DEVICES = ("auto", "cpu", "cuda", "mps")
# packages that most users can do without -> the extra that installs them
EXTRAS = {
    **dict.fromkeys(("openslide", "skimage"), "slides"),
    "torchstain": "edits",
    **dict.fromkeys(("starlette", "uvicorn", "xstatic"), "studio"),
    **dict.fromkeys(("jinja2", "matplotlib", "scipy", "sklearn", "torch_fidelity"), "scores"),
}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, paths that expand as in a shell, and help that shows defaults where there are any."""

    def __init__(self, description: str | None = None, examples: str = "", allow_abbrev: bool = True):
        epilog = f"examples:\n{examples.rstrip()}" if examples else None
        super().__init__(
            description=description, epilog=epilog, formatter_class=_HelpFormatter, allow_abbrev=allow_abbrev
        )
        self.register("type", Path, user_path)  # of every option with type=Path
        self._spellings: dict[str, str] = {}
        self.former_names: Mapping[str, Sequence[str]] = {}  # options of other programs -> those that may be meant here

    def add_spellings(self, option: str, *others: str) -> None:
        """Accept other names for an option, too, without showing them."""
        self._spellings |= {_with_dashes(other): option for other in others}

    def _known_spelling(self, argument: str) -> str:
        """Return an argument with the option that is known: a dash and an underscore within a name are the same."""
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return argument
        known = {_with_dashes(option): option for option in self._option_string_actions}
        return known.get(_with_dashes(name), self._spellings.get(_with_dashes(name), name)) + equals + value

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]  # argparse has overloads
        """Parse as argparse does. Exits with an error for an argument that is not UTF-8."""
        arguments = sys.argv[1:] if args is None else list(args)
        for text in arguments:
            if not is_utf8(text):
                self.error(f"{printable_name(text)}: this is not UTF-8; rename what is called so")
        arguments = [self._known_spelling(text) for text in arguments]
        if not self.allow_abbrev:
            self._refuse_unknown(arguments)
        return super().parse_known_args(arguments, namespace)

    def _refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Exit with an error for the first option that is not there, naming the one that may be meant."""
        for name in (text.partition("=")[0] for text in takewhile(lambda text: text != "--", arguments)):
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                known = [option for option in self._option_string_actions if option.startswith("--")]
                former = [option for option in self.former_names.get(_with_dashes(name), ()) if option in known]
                near = former or get_close_matches(_with_dashes(name), known, 1)
                self.error(f"no option {name}{f'; did you mean {near[0]}?' if near else ''}")

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        print(f"error: {message}; {self.prog} --help shows what there is", file=sys.stderr)
        sys.exit(2)


def _with_dashes(option: str) -> str:
    return f"--{option[2:].replace('_', '-')}"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        has_default = action.default not in (None, "", argparse.SUPPRESS, [])
        if has_default and action.option_strings and action.nargs != 0 and "[" not in text:
            return f"{text} (default: %(default)s)"
        return action.help


def positive_int(text: str) -> int:
    """Convert an argument to a whole number of at least 1."""
    return _at_least(1, _parse_number(text, int))


def natural_int(text: str) -> int:
    """Convert an argument to a whole number of at least 0."""
    return _at_least(0, _parse_number(text, int))


def seed_int(text: str) -> int:
    """Convert an argument to a seed, as torch takes them."""
    value = natural_int(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number from 0 to {2**63 - 1}")
    return value


def finite_float(text: str) -> float:
    """Convert an argument to a number that is neither infinite nor NaN."""
    value = _parse_number(text, float)
    if not abs(value) <= MAX_FLOAT:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number")
    return value


def positive_float(text: str) -> float:
    """Convert an argument to a number above 0."""
    value = finite_float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number above 0")
    return value


def fraction(text: str) -> float:
    """Convert an argument to a number from 0 to 1."""
    value = _parse_number(text, float)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected 0 to 1")
    return value


def jpeg_quality(text: str) -> int:
    """Convert an argument to a JPEG quality."""
    value = _parse_number(text, int)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"got {text}, expected 1 to 100")
    return value


def noise_interval(text: str) -> tuple[float, float] | None:
    """Convert `LO:HI` to two noise levels, and `all` to None."""
    if text == "all":
        return None
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LO:HI, such as 0.3:5, or all") from None
    return low, high


def step_spacing(text: str) -> str:
    """Return where the steps of a solver lie, as `diffusion.spacing` has it."""
    from diffusion.spacing import check_spacing

    try:
        return check_spacing(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _at_least(least: int, value: int) -> int:
    if value < least:
        raise argparse.ArgumentTypeError(f"got {value}, expected a whole number of at least {least}")
    return value


Number = TypeVar("Number", int, float)


def _parse_number(text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a {'whole ' if kind is int else ''}number") from None


def user_path(text: str) -> Path:
    """Convert an argument to a path, with ~ and variables expanded: a shell leaves `--root=~/x` as it is."""
    try:
        return Path(expand_path(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_text(text: str) -> str:
    """Convert an argument to the text of an expanded path, for names that are looked up below another folder."""
    return str(user_path(text))


def plain_name(text: str) -> str:
    """Convert an argument to a part of a file's name, or the name of one folder."""
    if not is_plain_name(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one folder name, or a part of a file's name")
    return text


def output_folder(text: str) -> Path:
    """Convert an argument to a folder to write to, which is there or can be made."""
    path = user_path(text)
    try:
        check_writable(path)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def output_file(text: str) -> Path:
    """Convert an argument to a file to write, in a folder that is there or can be made."""
    path = user_path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder, expected the name of a file")
    return output_name(text)


def output_name(text: str) -> Path:
    """Convert an argument to a file or folder to write, whose parent is there or can be made."""
    path = user_path(text)
    output_folder(str(path.absolute().parent))
    return path


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its code; an InputError becomes one line on stderr and code 2, Ctrl-C code 130.

    So do an OSError of SYSTEM_ERRORS and the absence of a package of EXTRAS. Other users may not write to new files,
    whatever the umask.
    """
    os.umask(os.umask(0o022) | 0o002)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # text that a terminal cannot show must not end long work
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main() or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print(
            f"error: this needs the package {package}; install it with pip install 'pixcell[{EXTRAS[package]}]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        rights = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
        advice = "; have it written elsewhere (--out and the like, or another --root), or change its permissions"
        print(f"error: {error}{advice if rights else ''}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
