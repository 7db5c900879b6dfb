"""What is in a file: hashes that tell contents apart, and placeholders in the place of files that were not fetched."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def recognise_placeholder(path: Path) -> str | None:
    """Return what lies in the place of a file that was not really fetched, and what to do; None for anything else.

    Git LFS pointers follow the format of git-lfs.com/spec/v1; web pages are what a download without permission leaves.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return None
    if not start:
        return "is empty; copy or download it again"
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file that it stands for; run `git lfs pull` where it came from"
    if re.match(rb"\s*(<\?xml[^>]*>\s*)?<Error>", start.removeprefix(codecs.BOM_UTF8)):
        return "is a server's error message, not the file that was asked for; download it again, signed in where that is needed"
    if re.match(rb"\s*(<\?xml[^>]*>\s*)?<(!doctype html|html)\b", start.removeprefix(codecs.BOM_UTF8), re.IGNORECASE):
        return "is an HTML page, not the file that was asked for; download it again, signed in where that is needed"
    return None


def fingerprint_file(path: Path) -> str:
    """Return a hash of a file's content, which tells weights apart whatever their names; about a second a gigabyte."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _read_parts(path):
        digest.update(part)
    return digest.hexdigest()


def fingerprint_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of names, shapes, types and values, which tells weights apart whatever file they come in."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, as it is published beside downloads."""
    digest = hashlib.sha256()
    for part in _read_parts(path):
        digest.update(part)
    return digest.hexdigest()


def _read_parts(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while part := file.read(2**20):
            yield part
