"""Frozen weights: stored once and named by content in every checkpoint, instead of being a part of each.

A network's parameters that require no gradient lie in `checkpoints/frozen_<hash>.safetensors` of the work dir. Networks
beside the trained one, such as the base under an adapter, stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError
from diffusion.utils.files import atomic_write, flush_to_disk
from diffusion.utils.weights import read_safetensors

SHOWN_DIGITS = 16  # of the hash, in file names


@dataclass(frozen=True)
class FrozenNetwork:
    """A network that a task's losses use and nothing trains.

    path: where its weights are from; fingerprint: the hash of its tensors.
    """

    network: nn.Module
    path: Path
    fingerprint: str

    @staticmethod
    def of(network: nn.Module, path: Path) -> FrozenNetwork:
        """Freeze a network in eval mode, and hash its weights."""
        return FrozenNetwork(network.eval().requires_grad_(False), path, fingerprint_tensors(network.state_dict()))


@dataclass(frozen=True)
class FrozenParameters:
    """A network's parameters that are not trained, on the CPU; of a network that is trained wholly, none.

    source: where they stay, for a run that keeps no copy of them; None: the run stores them itself.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    fingerprint: str = ""
    source: Path | None = None

    @staticmethod
    def of(network: nn.Module, source: Path | None = None) -> FrozenParameters:
        """Collect a network's frozen parameters; called by all processes before the network is sharded."""
        names = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
        state = network.state_dict()
        tensors = {name: state[name].detach().cpu().clone() for name in names}
        return FrozenParameters(tensors, fingerprint_tensors(tensors) if tensors else "", source)

    def describe(self) -> dict[str, Any] | None:
        """Return what a checkpoint says of them: the file beside it, or where they stay, and the hash of the tensors."""
        if not self.tensors:
            return None
        place = {"file": self._name} if self.source is None else {"source": str(self.source)}
        return {**place, "fingerprint": self.fingerprint}

    def check_same(self, saved: Mapping[str, Any], path: Path) -> None:
        """Raise InputError when a checkpoint was trained beside other weights than these."""
        before = saved.get("frozen") or {}
        if before.get("fingerprint") != self.fingerprint:
            raise InputError(
                f"{path} was trained on {before.get('source', 'other weights')}, and the weights of {self.source} are others; name "
                "those of before with load_from, or start a new run"
            )

    def save(self, folder: Path, verify: bool = True) -> None:
        """Write them into a checkpoints folder, unless they are there. Raises OSError.

        verify: read a file that is there, which takes a second or two a gigabyte, and replace one that is not whole.
        """
        if not self.tensors or self.source is not None:
            return
        path = folder / self._name
        if path.is_file() and (not verify or self._is_whole(path)):
            return
        from safetensors.torch import save_file

        with atomic_write(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, temporary)
            flush_to_disk(temporary)  # a checkpoint that names it is written after it
        flush_to_disk(folder)

    def _is_whole(self, path: Path) -> bool:
        try:
            return fingerprint_tensors(read_safetensors(path)) == self.fingerprint
        except InputError:
            return False

    @property
    def _name(self) -> str:
        return f"frozen_{self.fingerprint[:SHOWN_DIGITS]}.safetensors"


def freeze_parameters(network: nn.Module, parts: Sequence[str], name: str) -> None:
    """Freeze the parameters of some parts of a network, which messages call by `name`.

    Raises InputError for a part without parameters, and when nothing is left to train.
    """
    for part in parts:
        parameters = [weight for key, weight in network.named_parameters() if f"{key}.".startswith(f"{part}.")]
        if not parameters:
            raise InputError(f"freeze {part!r}: {name} has no part of that name with weights")
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"freeze {tuple(parts)}: nothing is left to train")


def check_frozen_networks(saved: Mapping[str, Any], networks: Mapping[str, FrozenNetwork], source: Path) -> None:
    """Raise InputError when a run would go on beside other frozen networks than it was begun with."""
    before = saved.get("frozen_networks", {})
    for name in sorted(before.keys() | networks.keys()):
        was, now = before.get(name), networks.get(name)
        if was is None or now is None:
            raise InputError(f"{source} was trained {'without' if was is None else 'with'} a frozen network {name!r}")
        if was["fingerprint"] != now.fingerprint:
            raise InputError(
                f"{source} was trained with {name} from {was['path']}, and the weights of {now.path} are others; "
                "name those of before, or start a new run"
            )


def describe_frozen_networks(networks: Mapping[str, FrozenNetwork]) -> dict[str, dict[str, str]]:
    """Return what checkpoints say of frozen networks: where they are from, and the hash of their weights."""
    return {name: {"path": str(frozen.path), "fingerprint": frozen.fingerprint} for name, frozen in networks.items()}
