"""Mean and covariance of features, accumulated batch by batch in float64. Letters: n rows of a batch, D width."""

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
    """Sums of rows and of their products, about a point near the mean: sums about zero lose the digits that a far mean takes."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device, self.count = torch.device(device), 0
        self.centre: torch.Tensor | None = None
        self.sum: torch.Tensor
        self.products: torch.Tensor

    def add(self, rows: torch.Tensor) -> None:
        """Add rows (n, D). Raises InputError for values that are NaN or infinite."""
        if rows.ndim != 2:
            raise InputError(f"got features {tuple(rows.shape)}, expected (samples, width)")
        if not torch.isfinite(rows).all():
            raise InputError("features hold values that are not finite")
        rows = rows.to(self.device, torch.float64)
        if self.centre is None:
            self.centre, width = rows.mean(0), rows.shape[1]
            self.sum = torch.zeros_like(self.centre)
            self.products = torch.zeros(width, width, dtype=torch.float64, device=self.device)
        rows = rows - self.centre
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.products.addmm_(rows.T, rows)

    def gaussian(self) -> Gaussian:
        """Return the Gaussian of all rows. Raises InputError for fewer than two."""
        if self.centre is None or self.count < 2:
            raise InputError(f"got {self.count} samples, expected at least 2")
        mean = self.sum / self.count
        covariance = (self.products - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Gaussian(self.count, self.centre + mean, covariance)


def fit_gaussian(batches: Iterable[torch.Tensor], device: torch.device | str = "cpu") -> Gaussian:
    """Fit a Gaussian to rows that come in batches (n, D). Raises InputError as `Moments`."""
    moments = Moments(device)
    for rows in batches:
        moments.add(rows)
    return moments.gaussian()
