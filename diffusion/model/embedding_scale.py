"""The scale on which a flow from noise works: embeddings in coordinates in which a Gaussian fitted to them is unit noise.

Letters: N images, L tokens of an image, D width of an embedding, K principal components.
"""

from __future__ import annotations

import torch
from torch import nn

from diffusion.utils.errors import InputError

SMALLEST_VARIANCE = 1e-6  # of a component, as a share of the largest; the rest is rounding of float16 files
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
        rows = embeddings.double().flatten(0, 1)
        mean = rows.mean(0)
        variance, vectors = torch.linalg.eigh(torch.cov(rows.T))
        variance, vectors = variance.flip(0)[:components], vectors.flip(1)[:, :components]
        if not variance[0] > 0:
            raise InputError("all embeddings to fit a scale to are equal")
        deviation = variance.clamp(min=SMALLEST_VARIANCE * float(variance[0])).sqrt()
        parts = ((embeddings.double() - mean) @ vectors / deviation).permute(2, 1, 0)  # (K, L, N)
        correlation = parts @ parts.transpose(1, 2) / parts.shape[2]
        scale = correlation.diagonal(dim1=1, dim2=2).mean(1).clamp(min=SMALLEST_VARIANCE)
        correlation = correlation / scale[:, None, None]
        identity = torch.eye(tokens, dtype=torch.float64)
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

    @property
    def weights(self) -> torch.Tensor:
        """Return how much each component (K,) counts in the squared distance of embeddings, on average once."""
        return self.deviation.square() / self.deviation.square().mean()

    def whiten(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the components (N, L, K) of tokens (N, L, D); what lies outside of the components is lost."""
        parts = (embeddings - self.mean) @ self.basis / self.deviation
        return torch.einsum("kij,njk->nik", self.unmixing, parts)

    def colour(self, components: torch.Tensor) -> torch.Tensor:
        """Return the tokens (N, L, D) of components (N, L, K)."""
        parts = torch.einsum("kij,njk->nik", self.mixing, components)
        return parts * self.deviation @ self.basis.T + self.mean
