"""Weights files, read as data and never unpickled: which files they are, and their content."""

from __future__ import annotations

import argparse
import glob
import hashlib
import logging
import re
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from diffusion.utils.content import fingerprint_file, fingerprint_tensors, recognise_placeholder
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.state_dicts import is_state_dict
from diffusion.utils.text import abbreviate, read_json

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of the files that diffusers and transformers write
SUFFIXES = (".safetensors", ".bin")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(.*\.(?:safetensors|bin))")
MAX_HEADER_BYTES = 10**8  # of safetensors


class StoredWeights(NamedTuple):
    """The content of weights files as it was saved, and the files."""

    content: Any
    files: list[Path]


def read_torch_file(path: Path) -> Any:
    """Return what a torch file holds, on the CPU; memory-mapped where the file allows it.

    Raises MissingError, or InputError for a damaged file and for anything but tensors and plain values.
    """
    import torch

    if not path.is_file():
        raise MissingError(f"no file {path}")
    _check_fetched(path)
    try:
        # files from before torch 1.6 are no zip archives, and only those can be mapped
        # a Namespace holds nothing but values; trainers keep their command line in one
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of other kinds of pickles, which are refused below
            if path.suffix == ".safetensors":  # which torch would go by
                with open(path, "rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise
    except Exception as error:  # fed with anything else than weights, the reader raises nearly anything
        raise InputError(f"{path} is refused: {_explain_refusal(error, path)}") from None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file. Raises MissingError, or InputError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingError(f"no weights at {path}; name a file, or a folder with one")
    _check_fetched(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error})") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None


def restore_frozen(content: Any, path: Path) -> Any:
    """Return a checkpoint's content with the frozen weights that it names among its trained and its averaged ones.

    Their file lies beside the checkpoint, or one folder above, where an archived one came from. Other content is returned
    as it is. Raises MissingError when the file is not there, InputError when its tensors have changed.
    """
    described = content.get("frozen") if isinstance(content, dict) else None
    if not isinstance(described, dict) or "fingerprint" not in described or "source" in described:
        return content  # of one with a source, the frozen weights stay there
    name = Path(str(described.get("file"))).name
    places = [folder / name for folder in (path.parent, path.parent.parent)]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise MissingError(f"{path} needs its frozen weights, and there is no {places[0]}; put that file back")
    tensors = read_safetensors(file)
    if fingerprint_tensors(tensors) != described["fingerprint"]:
        raise InputError(f"{file} is not what {path} was trained with: its weights have changed; put them back")
    restored = {**content, **{part: {**tensors, **content[part]} for part in ("model", "ema") if part in content}}
    if "power_ema" in content:
        averages = {length: {**tensors, **average} for length, average in content["power_ema"]["averages"].items()}
        restored["power_ema"] = {**content["power_ema"], "averages": averages}
    return restored


def is_safetensors(path: Path) -> bool:
    """Tell safetensors from torch files by their first bytes; by the suffix where those are of neither."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES:  # the length of a header in JSON
        return True
    return path.suffix == ".safetensors" and not start.startswith((b"PK\x03\x04", b"\x80"))


def find_weights(folder: Path) -> Path | None:
    """Return the weights file, or the index of shards, that lies in a folder under one of the usual names.

    Full precision comes before variants such as `diffusion_pytorch_model.fp16.safetensors`.
    """
    names = [f"{stem}{suffix}" for suffix in SUFFIXES for stem in STEMS]
    exact = [folder / f"{name}{index}" for name in names for index in ("", ".index.json")]
    patterns = [f"{name}.index.*.json" for name in names]
    patterns += [f"{stem}{part}{suffix}" for suffix in SUFFIXES for stem in STEMS for part in (".*", "*-of-*")]
    variants = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    found = next((path for path in exact if path.is_file() or path.is_symlink()), None)
    if found is None and variants:
        found = variants[0]
        rest = [path.name for path in variants if path != found and not SHARD.fullmatch(path.name)]
        if rest and not SHARD.fullmatch(found.name) and not found.name.endswith(".json"):
            log.warning("of the weights in %s %s is taken; there are %s, too", folder, found.name, abbreviate(rest))
    return found


def weights_files(path: Path) -> list[Path]:
    """Return the files that make up the weights at `path`: a file, an index of shards, or one of the shards.

    Raises MissingError for shards that are not there, InputError for an index that is damaged or leaves its folder.
    """
    if path.suffix == ".json":
        return sorted({path.parent / name for name in _shards_by_name(path).values()})
    match = SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    stem, _, count, suffix = match.groups()
    for index in sorted(path.parent.glob(f"{glob.escape(stem.partition('.')[0])}.*index*.json")):
        if path.name in (shards := _shards_by_name(index).values()):
            return sorted({path.parent / name for name in shards})
    files = [path.parent / f"{stem}-{i:05d}-of-{count}{suffix}" for i in range(1, int(count) + 1)]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise MissingError(f"{path.parent} lacks {len(absent)} of {count} shards of the weights: {abbreviate(absent)}")
    return files


def read_weights(path: Path) -> StoredWeights:
    """Read weights of any kind; safetensors and torch files are distinguished by content, shards are put together.

    Raises MissingError, or InputError for what is damaged, needs unpickling, or has one name in two shards.
    """
    if not path.is_file():
        raise MissingError(f"no weights at {path}; name a file, or a folder with one")
    files = weights_files(path)
    if files == [path]:
        return StoredWeights(restore_frozen(_read_file(path), path), files)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        part = _read_file(file)
        if not is_state_dict(part):
            raise InputError(f"{file} is no shard of weights: expected tensors by name alone")
        repeated = sorted(tensors.keys() & part.keys())
        if repeated:
            raise InputError(f"{path}: two shards hold {abbreviate(repeated)}; the folder has shards of several sets")
        tensors |= part
    absent = sorted(_shards_by_name(path).keys() - tensors.keys()) if path.suffix == ".json" else []
    if absent:
        raise InputError(f"{path} names {abbreviate(absent)}, which its shards lack; copy or download them again")
    return StoredWeights(tensors, files)


def fingerprint_weights(path: Path) -> str:
    """Return a hash of the content of weights: that of the file or, of shards, of all of theirs."""
    files = weights_files(path)
    if len(files) == 1:
        return fingerprint_file(files[0])
    return hashlib.blake2b("".join(map(fingerprint_file, files)).encode(), digest_size=16).hexdigest()


def _read_file(path: Path) -> Any:
    _check_fetched(path)
    return read_safetensors(path) if is_safetensors(path) else read_torch_file(path)


def _check_fetched(path: Path) -> None:
    placeholder = recognise_placeholder(path)
    if placeholder:
        raise InputError(f"{path} {placeholder}")


def _shards_by_name(index: Path) -> dict[str, str]:
    """Return the shard of each tensor that an index names. Raises as weights_files does."""
    _check_fetched(index)
    shards = read_json(index, "index of shards").get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise InputError(f"{index} is no index of shards: expected a weight_map of tensors' names and their files")
    names = sorted(set(shards.values()))
    outside = [name for name in names if "\\" in name or ":" in name or PurePosixPath(name).name != name]
    if outside:
        raise InputError(f"{index} names {abbreviate(outside)}: expected files beside it")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise MissingError(f"{index.parent} lacks {len(absent)} of {len(names)} shards: {abbreviate(absent)}")
    return shards


def _explain_refusal(error: Exception, path: Path) -> str:
    """Return the point of torch's page-long message, whose advice is to unpickle all the same."""
    with open(path, "rb") as file:
        start = file.read(2)
    text = str(error)
    code = re.search(r"GLOBAL (\S+)", text) or re.search(r"[Uu]nsupported class (\S+)", text)
    advice = "where you trust it, load it and save only its state dict: torch.save({'state_dict': ...}, FILE)"
    if code:
        return f"it refers to code, {code[1]}, and pickled code is never run here; {advice}"
    if "TorchScript" in text:
        return f"it is a TorchScript program, and code is never run here; {advice}"
    if start[:1] == b"\x80" and start[1:] > b"\x02":  # torch writes protocol 2
        return f"it is not a whole torch file but a plain pickle, which is never run here; {advice}"
    return "it is not a whole torch file of tensors and plain values"
