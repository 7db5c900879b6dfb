"""What every command line shares: the parser's common options, one-line errors, the device, and progress bars."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion.errors import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


def tool_parser(description: str, examples: str = "", seed: int = 0) -> argparse.ArgumentParser:
    """A parser with the options that every tool has: --root, --device, --seed."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    epilog = f"examples:\n{examples}" if examples else None
    parser = argparse.ArgumentParser(description=description, epilog=epilog, formatter_class=Formatter)
    parser.add_argument(
        "--root",
        type=Path,
        default=default_root(),
        help="folder with patches/, features/ and pretrained_models/ [$PIXCELL_ROOT, else the current folder]",
    )
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="where the networks run; auto takes cuda, then mps, then cpu"
    )
    parser.add_argument("--seed", type=int, default=seed, help="of everything random")
    return parser


def default_root() -> Path:
    return Path(os.environ.get("PIXCELL_ROOT") or ".")


def positive_int(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected a whole number of at least 1")
    return value


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit with its code; an InputError becomes one line on stderr and code 2, Ctrl-C code 130."""
    try:
        sys.exit(main() or 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def pick_device(name: str) -> torch.device:
    """The torch device for a --device value.

    Raises InputError when the device asked for is not on this machine.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device {name}: this machine has none that torch can use; take --device auto or cpu")
    return torch.device(name)
