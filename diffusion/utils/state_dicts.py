"""Finds a network's state dict in a checkpoint: under which keys, behind which prefixes, averaged or raw."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diffusion.utils.errors import InputError
from diffusion.utils.text import abbreviate

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

NESTING = 3  # how deep a state dict may lie in a checkpoint
# Words of the keys and prefixes under which trainers keep averaged weights, and the ones that say the opposite.
AVERAGES = frozenset(("ema", "ewma", "average", "averaged", "averages", "avg", "swa", "polyak", "shadow"))
NOT_AVERAGED = frozenset(("online", "student", "raw", "non", "no"))
SETTINGS = frozenset(("decay", "rate", "step", "steps", "start", "every", "config", "kwargs", "power", "updates"))
# Components that torch.compile, DDP, FSDP, activation checkpointing and Lightning Fabric put into names.
WRAPPERS = frozenset(
    ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module")
)
COUNTERS = frozenset(("n_averaged", "initted", "step", "decay", "num_updates"))  # tensors of averages themselves
FLAT_AVERAGE = "model_ema."  # of CompVis' LitEma, whose names have no dots after this


class Candidate(NamedTuple):
    """A state dict in a checkpoint: its place, whether it is an average, its tensors, and the names beside it."""

    place: str
    averaged: bool
    tensors: dict[str, torch.Tensor]
    extras: list[str]


def find_state_dict(
    content: Any,
    source: str | Path,
    anchors: Sequence[str],
    ema: bool = True,
    averages: Collection[str] = AVERAGES,
    constants: Collection[str] = (),
    advice: str = "",
) -> dict[str, torch.Tensor]:
    """Return a network's tensors in a checkpoint, without the components of wrappers in their names.

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
    chosen = _only_candidate((averaged or raw) if ema else raw, source)
    if chosen is None:
        if not named:
            raise InputError(_describe_content(content, source))
        return _unwrap(max((part for _, part in named), key=len), source, frozenset())
    if chosen.averaged and raw:
        chosen = _add_constants(chosen, raw, constants)
        log.warning(
            "%s holds averaged and raw weights: the averaged ones are taken, under %s%s",
            source, chosen.place, f"; {advice} takes the raw ones, under {raw[0].place}" if advice else "",
        )  # fmt: skip
    if chosen.extras:
        log.warning("%s: what is beside the network is left out: %s", source, abbreviate(chosen.extras))
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


def is_state_dict(content: Any) -> bool:
    """Tell whether something is a mapping of names to tensors, and not empty."""
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
    if is_state_dict(content):
        yield place, content
    elif isinstance(content, (Mapping, list)) and len(place) < NESTING:
        named = isinstance(content, Mapping)
        for key, value in content.items() if named else enumerate(content):
            if isinstance(key, str) or not named:  # numbers are keys of an optimizer's states
                yield from _state_dicts(value, (*place, str(key)))


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
    extras = []
    for name, tensor in tensors.items():
        prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if prefix is None:
            extras.append(name)
        else:
            inner[prefix][name.removeprefix(prefix)] = tensor
    extras = [name for name in extras if name not in COUNTERS]
    for prefix, own in inner.items():
        label = ", ".join(filter(None, ("/".join(place), prefix and f"{prefix}*"))) or "no key of its own"
        averaged = _is_average((*place, prefix), averages) or "n_averaged" in own
        own = {name: tensor for name, tensor in own.items() if name not in COUNTERS}
        yield Candidate(label, averaged, own, extras)
        flat_average = {name: flat[key] for name in own if (key := _flat_name(f"{prefix}{name}", flat))}
        if flat_average:
            yield Candidate(f"{FLAT_AVERAGE}*", True, {**own, **flat_average}, extras)


def _flat_name(name: str, flat: Mapping[str, Any]) -> str | None:
    """Return the name that LitEma gives the average of a tensor, with the first component of its own or without."""
    names = [FLAT_AVERAGE + text.replace(".", "") for text in (name, name.partition(".")[2])]
    return next((key for key in names if key in flat), None)


def _unwrap(
    named: Mapping[str, torch.Tensor], source: str | Path, network_parts: frozenset[str]
) -> dict[str, torch.Tensor]:
    """Take the components that wrappers add off the names, unless the network has such components of its own."""
    tensors: dict[str, torch.Tensor] = {}
    before: dict[str, str] = {}
    for name, tensor in named.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS - network_parts)
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


def _only_candidate(candidates: list[Candidate], source: str | Path) -> Candidate | None:
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


def _add_constants(average: Candidate, raw: Sequence[Candidate], constants: Collection[str]) -> Candidate:
    """Add to averages of parameters alone the constants of the raw weights beside them."""
    absent = [name for name in constants if name in raw[0].tensors and name not in average.tensors]
    return average._replace(tensors={**average.tensors, **{name: raw[0].tensors[name] for name in absent}})


def _report_absent(content: Any, source: str | Path, averages: Collection[str], raw: Sequence[Candidate]) -> None:
    """Warn that the place of averages is empty. Raises InputError for averages in a list, which have no names."""
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


def _describe_content(content: Any, source: str | Path) -> str:
    """Return a message about what a file holds instead of a state dict."""
    if not isinstance(content, Mapping):
        found = f"a {type(content).__name__}"
    elif "param_groups" in content:
        found = "the state of an optimizer"
    elif any(hasattr(value, "dtype") for value in content.values()):
        misfits = [
            f"{key} is of type {type(value).__name__}" for key, value in content.items() if not hasattr(value, "dtype")
        ]
        found = f"more than tensors by name ({abbreviate(misfits)})" if misfits else "tensors without names"
    else:
        found = f"the keys {abbreviate([str(key) for key in content])}" if content else "nothing"
    return (
        f"{source} holds no state dict but {found}: expected tensors by name, at the top or under state_dict, ema or model, "
        "as torch.save(model.state_dict(), file) writes them"
    )
