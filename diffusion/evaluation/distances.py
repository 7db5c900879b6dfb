"""Distances between two sets of features. Letters: N real samples, M synthetic samples, D feature width."""

from __future__ import annotations

import torch
from torch import nn

from diffusion.errors import InputError


def frechet_distance(real: torch.Tensor, synthetic: torch.Tensor) -> float:
    """Frechet distance between Gaussians fitted to real (N, D) and synthetic (M, D) features, in float64.

    The sum that FID takes over Inception features (Heusel et al. 2017), with unbiased covariances. With fewer samples than D
    it is biased upwards: compare only distances taken from equally many samples.
    Raises InputError for fewer than two samples on a side, or widths that differ.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    for name, features in (("real", real), ("synthetic", synthetic)):
        if features.ndim != 2 or len(features) < 2:
            raise InputError(
                f"got {name} features {tuple(features.shape)}, expected at least 2 samples, (samples, width)"
            )
        if not torch.isfinite(features).all():
            raise InputError(f"{name} features hold values that are not finite")
    if real.shape[1] != synthetic.shape[1]:
        raise InputError(
            f"real features are {real.shape[1]} wide, synthetic ones {synthetic.shape[1]}; take both from one encoder"
        )
    real, synthetic = real.double(), synthetic.double()
    centre = real.mean(0)  # changes no distance, but spares the covariances from cancelling
    metric = FrechetInceptionDistance(feature=_PassThrough(real.shape[1])).to(real.device).set_dtype(torch.float64)
    metric.update(real - centre, real=True)
    metric.update(synthetic - centre, real=False)
    return max(float(metric.compute()), 0.0)  # of equal sets it is zero but for rounding


class _PassThrough(nn.Module):
    """Stands where the metric expects a network, for features computed already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features
