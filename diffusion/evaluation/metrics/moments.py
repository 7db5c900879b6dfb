"""Mean and covariance of features, gathered batch by batch in float64. Letters: N rows, D width."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from diffusion.utils.errors import InputError


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and unbiased covariance (D, D) of `count` rows, in float64."""

    count: int
    mean: torch.Tensor
    covariance: torch.Tensor


class Moments:
    """Sums over rows, about a point near their mean: sums about zero lose the digits that a far mean takes up."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device, self.count = torch.device(device), 0
        self.centre: torch.Tensor | None = None

    def add(self, rows: torch.Tensor) -> None:
        """Count rows (n, D). Raises InputError for what is not finite."""
        if rows.ndim != 2:
            raise InputError(f"got features {tuple(rows.shape)}, expected (samples, width)")
        if not torch.isfinite(rows).all():
            raise InputError("features hold values that are not finite")
        rows = rows.to(self.device, torch.float64)
        if self.centre is None:
            self.centre = rows.mean(0)
            self.sum = torch.zeros_like(self.centre)
            self.products = torch.zeros(len(self.centre), len(self.centre), dtype=torch.float64, device=self.device)
        rows = rows - self.centre
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.products.addmm_(rows.T, rows)

    def gaussian(self) -> Gaussian:
        """Raises InputError for fewer than two rows."""
        if self.count < 2:
            raise InputError(f"got {self.count} samples, expected at least 2")
        mean = self.sum / self.count
        covariance = (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self.count, self.centre + mean, covariance)


def fit_gaussian(batches: Iterable[torch.Tensor], device: torch.device | str = "cpu") -> Gaussian:
    """The Gaussian of rows that come in batches (n, D)."""
    moments = Moments(device)
    for rows in batches:
        moments.add(rows)
    return moments.gaussian()
