"""Reading weights files: as data, never unpickled."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.errors import InputError, MissingError

if TYPE_CHECKING:
    import torch


def read_torch_file(path: Path) -> Any:
    """What a torch file holds, on the CPU; memory-mapped where the file allows it.

    Raises MissingError, or InputError for a damaged file and for anything but tensors and plain values.
    """
    import torch

    if not path.is_file():
        raise MissingError(f"no file {path}")
    try:
        # files from before torch 1.6 are no zip archives, and only those can be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # fed with anything else than weights, the reader raises nearly anything
        raise InputError(f"{path} is refused: {_reason(error)}") from None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises MissingError, or InputError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingError(f"no weights at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error})") from None


def _reason(error: Exception) -> str:
    """The point of torch's page-long message, whose advice is to unpickle all the same."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
        return f"it refers to code, {code[1]}, and pickled code is never run here"
    return "it is not a whole torch file of tensors and plain values"
