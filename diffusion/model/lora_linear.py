"""A linear map with low-rank adapters: W becomes W + scale * alpha / rank * B A, and only A and B are trained (Hu et al. 2021).

Letters: r rank, I inputs and O outputs of a linear map.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn


class LoraMap(nn.Module):
    """The adapter of one part of a linear map's outputs: A (r, I) is drawn, B (O, r) begins at zero."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, inputs) / rank)  # as peft's init_lora_weights="gaussian"
        self.B = nn.Parameter(torch.zeros(outputs, rank))


class LoraLinear(nn.Linear):
    """A linear map with adapters by name, each of some of its parts; weight and bias keep their names in the state dict.

    scales: of the adapters that count; one of scale 0 is not computed, so that the map is its own to the bit.
    """

    def __init__(self, linear: nn.Linear, parts: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.parts = linear.in_features, linear.out_features, parts
        self.weight, self.bias = linear.weight, linear.bias
        self.adapters = nn.ModuleDict()
        self.scales: dict[str, float] = {}
        self._original: torch.Tensor | None = None  # the weight, while adapters are merged into it

    def add(self, name: str, part: int, rank: int, scale: float) -> LoraMap:
        """Add an adapter of a part."""
        if name not in self.adapters:
            self.adapters[name] = nn.ModuleDict()
        adapter = LoraMap(self.in_features, self.out_features // self.parts, rank).to(self.weight)
        cast(nn.ModuleDict, self.adapters[name])[str(part)] = adapter
        self.scales[name] = scale
        return adapter

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the map of inputs (..., I) with its adapters: (..., O)."""
        out = super().forward(input)
        if self.is_merged:
            return out
        for name, scale in self.scales.items():
            if scale:
                out = out + scale * self._difference(name, input)
        return out

    def _difference(self, name: str, x: torch.Tensor) -> torch.Tensor:
        maps = cast(nn.ModuleDict, self.adapters[name])
        width = self.out_features // self.parts
        found = []
        for part in range(self.parts):
            if str(part) in maps:
                adapter = cast(LoraMap, maps[str(part)])
                found.append(F.linear(F.linear(x, adapter.A), adapter.B))
            else:
                found.append(x.new_zeros(*x.shape[:-1], width))
        return found[0] if self.parts == 1 else torch.cat(found, dim=-1)

    @property
    def is_merged(self) -> bool:
        """Tell whether the adapters are in the weight, and not computed beside it."""
        return self._original is not None

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters to the weight, which is then computed alone; done again after a change of scales."""
        self.unmerge()
        self._original = self.weight.detach().clone()
        rows = self.weight.view(self.parts, -1, self.in_features)
        for name, scale in self.scales.items():
            for part, adapter in cast(nn.ModuleDict, self.adapters[name]).items():
                adapter = cast(LoraMap, adapter)
                rows[int(part)] += (scale * (adapter.B.double() @ adapter.A.double())).to(rows.dtype)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the weight back as it was, to the bit."""
        if self._original is not None:
            self.weight.copy_(self._original)
            self._original = None
