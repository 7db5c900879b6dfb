"""Weights files, read as data and never unpickled: which files hold them, and where in them a network's state dict is."""

from __future__ import annotations

import glob
import hashlib
import logging
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from diffusion.errors import InputError, MissingError
from diffusion.files import fingerprint, recognise_placeholder
from diffusion.text import abbreviate, read_json

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of the files that diffusers and transformers write
SUFFIXES = (".safetensors", ".bin")
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(.*\.(?:safetensors|bin))")
LONGEST_HEADER = 10**8  # bytes, of safetensors
NESTING = 3  # how deep a state dict may lie in a checkpoint

# Words of the keys and prefixes under which trainers keep averaged weights, and the ones that say the opposite.
AVERAGES = frozenset(("ema", "ewma", "average", "averaged", "averages", "avg", "swa", "polyak", "shadow"))
NOT_AVERAGED = frozenset(("online", "student", "raw", "non", "no"))
SETTINGS = frozenset(("decay", "rate", "step", "steps", "start", "every", "config", "kwargs", "power", "updates"))
# Components that torch.compile, DDP, FSDP, activation checkpointing and Lightning Fabric put into names.
WRAPPERS = frozenset(
    ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module")
)
COUNTERS = frozenset(
    ("n_averaged", "initted", "step", "decay", "num_updates")
)  # tensors that averages keep of themselves
FLAT_AVERAGE = "model_ema."  # of CompVis' LitEma, whose names have no dots after this


class Stored(NamedTuple):
    """What weights files hold: `content` as it was saved, and the files themselves."""

    content: Any
    files: list[Path]


class Candidate(NamedTuple):
    """A state dict in a checkpoint: where it lies, whether it is an average, its tensors, and names beside them."""

    place: str
    averaged: bool
    tensors: dict[str, torch.Tensor]
    beside: list[str]


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
        with warnings.catch_warnings(action="ignore"):  # of other kinds of pickles, which are refused below
            if path.suffix == ".safetensors":  # which torch would go by
                with open(path, "rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise
    except Exception as error:  # fed with anything else than weights, the reader raises nearly anything
        raise InputError(f"{path} is refused: {_reason(error, path)}") from None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file. Raises MissingError, or InputError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingError(f"no weights at {path}")
    _check_fetched(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error})") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None


def is_safetensors(path: Path) -> bool:
    """Tell safetensors from torch files by their first bytes; by the suffix where those are of neither."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER:  # its length, and it is JSON
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


def read_weights(path: Path) -> Stored:
    """Read weights of any kind; safetensors and torch files are told apart by content, shards are put together.

    Raises MissingError, or InputError for what is damaged, needs unpickling, or has one name in two shards.
    """
    if not path.is_file():
        raise MissingError(f"no weights at {path}")
    files = weights_files(path)
    if files == [path]:
        return Stored(_read_file(path), files)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        part = _read_file(file)
        if not _is_state_dict(part):
            raise InputError(f"{file} is no shard of weights: expected tensors by name alone")
        twice = sorted(tensors.keys() & part.keys())
        if twice:
            raise InputError(f"{path}: two shards hold {abbreviate(twice)}; the folder has shards of several sets")
        tensors |= part
    absent = sorted(_shards_by_name(path).keys() - tensors.keys()) if path.suffix == ".json" else []
    if absent:
        raise InputError(f"{path} names {abbreviate(absent)}, which its shards lack; copy or download them again")
    return Stored(tensors, files)


def fingerprint_weights(path: Path) -> str:
    """Return a hash of the content of weights: that of the file or, of shards, of all of theirs."""
    files = weights_files(path)
    if len(files) == 1:
        return fingerprint(files[0])
    return hashlib.blake2b("".join(map(fingerprint, files)).encode(), digest_size=16).hexdigest()


def find_state_dict(
    content: Any,
    source: str | Path,
    anchors: Sequence[str],
    ema: bool = True,
    averages: Collection[str] = AVERAGES,
    constants: Collection[str] = (),
    advice: str = "",
) -> dict[str, torch.Tensor]:
    """Return a network's tensors in a checkpoint, their names without what wraps them.

    They may lie under keys of up to three levels, or behind prefixes such as `model.`; anchors: names that show where
    the network's own begin. ema: take averaged weights where there are some, and say so where there are others, too;
    else take the raw ones. averages: words of keys and prefixes that mean averages. constants: names that averages may
    lack, since they are never trained. advice: how to get the raw ones, for the log. Raises InputError where there is
    no state dict, several that differ, or two names that become one.
    """
    named = list(_state_dicts(content))
    found = [each for place, part in named for each in _networks_in(place, part, anchors, averages, source)]
    averaged, raw = ([each for each in found if each.averaged is kind] for kind in (True, False))
    if not ema and averaged and not raw:
        raise InputError(
            f"{source} holds averaged weights only, under {averaged[0].place}; leave out --weights raw to take those"
        )
    if ema and not averaged:
        _report_absent(content, source, averages, raw)
    chosen = _one_of((averaged or raw) if ema else raw, source)
    if chosen is None:
        if not named:
            raise InputError(_no_state_dict(content, source))
        return _unwrap(max((part for _, part in named), key=len), source, frozenset())
    if chosen.averaged and raw:
        chosen = _complete(chosen, raw, constants)
        log.warning(
            "%s holds averaged and raw weights: the averaged ones are taken, under %s%s",
            source, chosen.place, f"; {advice} takes the raw ones, under {raw[0].place}" if advice else "",
        )  # fmt: skip
    if chosen.beside:
        log.warning("%s: what is beside the network is left out: %s", source, abbreviate(chosen.beside))
    return chosen.tensors


def check_types(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Check that weights are floats where a network's own are, and have values. Raises InputError."""
    for name in own.keys() & weights.keys():
        tensor = weights[name]
        if own[name].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{source}: {name} is of type {kind}, expected floating-point numbers; save it unquantised"
            )
        if tensor.is_meta:
            raise InputError(f"{source}: {name} has a shape but no values; it was saved from the meta device")


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
    shards = read_json(index).get("weight_map")
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


def _is_state_dict(content: Any) -> bool:
    import torch

    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _state_dicts(
    content: Any, place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, torch.Tensor]]]:
    """Walk through the state dicts of a checkpoint, with the keys under which they lie."""
    if _is_state_dict(content):
        yield place, content
    elif isinstance(content, Mapping) and len(place) < NESTING:
        for key, value in content.items():
            if isinstance(key, str):
                yield from _state_dicts(value, (*place, key))


def _networks_in(
    place: tuple[str, ...],
    named: Mapping[str, torch.Tensor],
    anchors: Sequence[str],
    averages: Collection[str],
    source: str | Path,
) -> Iterator[Candidate]:
    """Cut a state dict into the networks that it holds, each with the prefix at which an anchor was found."""
    tensors = _unwrap(named, source, frozenset(part for anchor in anchors for part in anchor.split(".")))
    flat = {name: tensors.pop(name) for name in list(tensors) if re.fullmatch(rf"{FLAT_AVERAGE}[^.]+", name)}
    prefixes: list[str] = []
    for anchor in anchors:
        prefixes = prefixes or [n.removesuffix(anchor) for n in tensors if f".{n}".endswith(f".{anchor}")]
    inner: dict[str, dict[str, torch.Tensor]] = {prefix: {} for prefix in prefixes}
    beside = []
    for name, tensor in tensors.items():
        prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if prefix is None:
            beside.append(name)
        else:
            inner[prefix][name.removeprefix(prefix)] = tensor
    beside = [name for name in beside if name not in COUNTERS]
    for prefix, own in inner.items():
        label = ", ".join(filter(None, ("/".join(place), prefix and f"{prefix}*"))) or "no key of its own"
        averaged = _is_average((*place, prefix), averages) or "n_averaged" in own
        own = {name: tensor for name, tensor in own.items() if name not in COUNTERS}
        yield Candidate(label, averaged, own, beside)
        flat_average = {name: flat[key] for name in own if (key := _flat_name(f"{prefix}{name}", flat))}
        if flat_average:
            yield Candidate(f"{FLAT_AVERAGE}*", True, {**own, **flat_average}, beside)


def _flat_name(name: str, flat: Mapping[str, Any]) -> str | None:
    """Return the name that LitEma gives the average of a tensor, with the first component of its own or without."""
    names = [FLAT_AVERAGE + text.replace(".", "") for text in (name, name.partition(".")[2])]
    return next((key for key in names if key in flat), None)


def _unwrap(
    named: Mapping[str, torch.Tensor], source: str | Path, own_parts: frozenset[str]
) -> dict[str, torch.Tensor]:
    """Take the components that wrappers add off the names, unless the network has such components of its own."""
    tensors: dict[str, torch.Tensor] = {}
    before: dict[str, str] = {}
    for name, tensor in named.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS - own_parts)
        if short in tensors:
            raise InputError(f"{source} holds both {before[short]} and {name}, which name one tensor; save one of them")
        tensors[short], before[short] = tensor, name
    return tensors


def _is_average(parts: Sequence[str], averages: Collection[str]) -> bool:
    """Tell from keys and prefix, the innermost first, whether they mean averaged weights."""
    for part in reversed(parts):
        words = _words(part)
        if words & NOT_AVERAGED:
            return False
        if words & set(averages):
            return True
    return False


def _words(key: str) -> set[str]:
    """Split `model_ema`, `modelEMA` and `EMAModel` into lower-case words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", key)
    return set(re.findall(r"[a-z]+", spaced.lower()))


def _one_of(candidates: list[Candidate], source: str | Path) -> Candidate | None:
    """Return the only candidate, or the first of several that are equal. Raises InputError where they differ."""
    import torch

    for other in candidates[1:]:
        first = candidates[0].tensors
        same = first.keys() == other.tensors.keys()
        if not same or not all(torch.equal(first[name], other.tensors[name]) for name in first):
            kind = "averages" if other.averaged else "networks"
            places = abbreviate([each.place for each in candidates])
            raise InputError(f"{source} holds several {kind}, under {places}; save the one that is meant by itself")
    return candidates[0] if candidates else None


def _complete(average: Candidate, raw: Sequence[Candidate], constants: Collection[str]) -> Candidate:
    """Give averages of parameters alone what is never trained from the raw weights beside them."""
    absent = [name for name in constants if name in raw[0].tensors and name not in average.tensors]
    return average._replace(tensors={**average.tensors, **{name: raw[0].tensors[name] for name in absent}})


def _report_absent(content: Any, source: str | Path, averages: Collection[str], raw: Sequence[Candidate]) -> None:
    """Say that the place of averages is empty. Raises InputError for averages in a list, which have no names."""
    for key, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(key, str) or not _is_average((key,), averages) or _words(key) & SETTINGS:
            continue
        listed = [value, *value.values()] if isinstance(value, Mapping) else [value]
        if any(isinstance(each, Sequence) and len(each) and hasattr(each[0], "dtype") for each in listed):
            raise InputError(
                f"{source}: the averaged weights under {key} are a list without names, as EMAModel of diffusers keeps them; "
                "copy them into the network (EMAModel.copy_to), and save its state dict"
                + (f"; or take the raw ones, under {raw[0].place}, with --weights raw" if raw else "")
            )
        if raw and (value is None or (isinstance(value, (Mapping, Sequence)) and not len(value))):
            log.warning("%s: there are no averaged weights under %s; the raw ones are taken, under %s",
                        source, key, raw[0].place)  # fmt: skip


def _no_state_dict(content: Any, source: str | Path) -> str:
    """Say what a file holds instead of a state dict."""
    if not isinstance(content, Mapping):
        found = f"a {type(content).__name__}"
    elif "param_groups" in content:
        found = "the state of an optimizer"
    elif any(hasattr(value, "dtype") for value in content.values()):
        others = [
            f"{key} is of type {type(value).__name__}" for key, value in content.items() if not hasattr(value, "dtype")
        ]
        found = f"more than tensors by name ({abbreviate(others)})" if others else "tensors without names"
    else:
        found = f"the keys {abbreviate([str(key) for key in content])}" if content else "nothing"
    return (
        f"{source} holds no state dict but {found}: expected tensors by name, at the top or under state_dict, ema or model, "
        "as torch.save(model.state_dict(), file) writes them"
    )


def _reason(error: Exception, path: Path) -> str:
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
