"""Frozen weights: stored once and named by content in every checkpoint, instead of being a part of each.

A network's parameters that require no gradient lie in `checkpoints/frozen_<hash>.safetensors` of the work dir. Networks
beside the trained one, such as the base under an adapter, stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.utils.content import fingerprint_tensors
from diffusion.utils.errors import InputError, MissingError
from diffusion.utils.files import atomic_write

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
class FrozenWeights:
    """A network's parameters that are not trained, on the CPU; of a network that is trained wholly, none."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    fingerprint: str = ""

    @staticmethod
    def of(network: nn.Module) -> FrozenWeights:
        """Collect a network's frozen parameters; called by all processes before the network is sharded."""
        names = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
        state = network.state_dict()
        tensors = {name: state[name].detach().cpu().clone() for name in names}
        return FrozenWeights(tensors, fingerprint_tensors(tensors) if tensors else "")

    def describe(self) -> dict[str, Any] | None:
        """Return what a checkpoint says of them: the file beside it, and the hash of the tensors."""
        return {"file": self._name, "fingerprint": self.fingerprint} if self.tensors else None

    def save(self, folder: Path) -> None:
        """Write them into a checkpoints folder, unless they are there already."""
        if not self.tensors or (folder / self._name).is_file():
            return
        from safetensors.torch import save_file

        with atomic_write(folder / self._name) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, temporary)

    def select_trained(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a state dict without them."""
        return {name: tensor for name, tensor in tensors.items() if name not in self.tensors}

    @property
    def _name(self) -> str:
        return f"frozen_{self.fingerprint[:SHOWN_DIGITS]}.safetensors"


def restore_frozen(saved: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's content with its frozen weights among the model's and the averaged ones.

    Raises MissingError when their file is not beside the checkpoint, InputError when its tensors have changed.
    """
    described = saved.get("frozen")
    if described is None:
        return saved
    from safetensors.torch import load_file

    path = checkpoint.parent / Path(described["file"]).name
    if not path.is_file():
        raise MissingError(f"{checkpoint} needs its frozen weights, and there is no {path}; put that file back")
    tensors = load_file(path)
    if fingerprint_tensors(tensors) != described["fingerprint"]:
        raise InputError(f"{path} is not what {checkpoint} was trained with: its weights have changed; put them back")
    return {**saved, "model": {**tensors, **saved["model"]}, "ema": {**tensors, **saved["ema"]}}


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
