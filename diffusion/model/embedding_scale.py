"""The scale on which a flow from noise works: embeddings in coordinates in which a Gaussian fitted to them is unit noise.

Letters: N images, L tokens of an image, D width of an embedding, K principal components.
"""

from __future__ import annotations

import torch
from torch import nn

from diffusion.utils.errors import InputError

SMALLEST_VARIANCE = 1e-6  # of a component, as a share of the largest; the rest is rounding of float16 files
IMAGES_AT_ONCE = 256
SHRINKAGE = 1e-3  # of the correlations of tokens towards none, so that those of equal tokens can be inverted


class EmbeddingScale(nn.Module):
    """Tokens (N, L, D) to whitened components (N, L, K) and back.

    Each principal component has a mean, a standard deviation, and its own correlations between the L tokens of an image: the
    second moments of the tokens, but for correlations of different components at different places.
    """

    mean: torch.Tensor  # (D,)
    basis: torch.Tensor  # (D, K), orthonormal columns
    deviation: torch.Tensor  # (K,)
    mixing: torch.Tensor  # (K, L, L), lower triangular: the Cholesky factors of the correlations of tokens
    unmixing: torch.Tensor  # (K, L, L): their inverses

    def __init__(self, width: int, components: int, tokens: int = 1):
        super().__init__()
        identity = torch.eye(tokens).repeat(components, 1, 1)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.eye(width, components))
        self.register_buffer("deviation", torch.ones(components))
        self.register_buffer("mixing", identity)
        self.register_buffer("unmixing", identity.clone())

    @torch.no_grad()
    def fit(self, embeddings: torch.Tensor) -> None:
        """Fit to tokens (N, L, D), in float64. Raises InputError for fewer than two images, or without any variation."""
        components, tokens = self.mixing.shape[:2]
        if len(embeddings) < 2:
            raise InputError(f"{len(embeddings)} images to fit the scale of embeddings to: expected at least 2")
        parts = embeddings.split(IMAGES_AT_ONCE)  # as float64 they would fill the memory
        count, device = len(embeddings) * tokens, embeddings.device
        mean = sum((part.double().sum((0, 1)) for part in parts), torch.zeros((), dtype=torch.float64)) / count
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=device)
        for part in parts:
            rows = part.double().flatten(0, 1) - mean
            covariance += rows.T @ rows / (count - 1)
        variance, vectors = torch.linalg.eigh(covariance)
        variance, vectors = variance.flip(0)[:components], vectors.flip(1)[:, :components]
        if not variance[0] > 0:
            raise InputError("all embeddings to fit a scale to are equal")
        deviation = variance.clamp(min=SMALLEST_VARIANCE * float(variance[0])).sqrt()
        correlation = torch.zeros(components, tokens, tokens, dtype=torch.float64, device=device)
        for part in parts:
            white = ((part.double() - mean) @ vectors / deviation).permute(2, 1, 0)  # (K, L, n)
            correlation += white @ white.transpose(1, 2) / len(embeddings)
        scale = correlation.diagonal(dim1=1, dim2=2).mean(1).clamp(min=SMALLEST_VARIANCE)
        correlation = correlation / scale[:, None, None]
        identity = torch.eye(tokens, dtype=torch.float64, device=device)
        mixing = torch.linalg.cholesky((1 - SHRINKAGE) * correlation + SHRINKAGE * identity)
        fitted = {
            "mean": mean,
            "basis": vectors,
            "deviation": deviation,
            "mixing": mixing,
            "unmixing": torch.linalg.inv(mixing),
        }
        for name, value in fitted.items():
            getattr(self, name).copy_(value)

    def as_embeddings(self, differences: torch.Tensor) -> torch.Tensor:
        """Return differences of components (N, L, K) with the length, in principal axes, that they have as differences of tokens.

        In units of the mean deviation, so that the mean square of noise stays 1.
        """
        unit = self.deviation.square().mean().sqrt()
        return torch.einsum("kij,njk->nik", self.mixing, differences) * (self.deviation / unit)

    def whiten(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the components (N, L, K) of tokens (N, L, D); what lies outside of the components is lost."""
        parts = (embeddings - self.mean) @ self.basis / self.deviation
        return torch.einsum("kij,njk->nik", self.unmixing, parts)

    def colour(self, components: torch.Tensor) -> torch.Tensor:
        """Return the tokens (N, L, D) of components (N, L, K)."""
        parts = torch.einsum("kij,njk->nik", self.mixing, components)
        return parts * self.deviation @ self.basis.T + self.mean
