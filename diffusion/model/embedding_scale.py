"""The scale on which a flow from noise works: embeddings in coordinates in which a Gaussian fitted to them is unit noise.

Letters: N images, L tokens of an image, D width of an embedding, K principal components, C classes.
"""

from __future__ import annotations

import torch
from torch import nn

from diffusion.utils.errors import InputError

SMALLEST_VARIANCE = 1e-6  # of a component, as a share of the largest; the rest is rounding of float16 files
IMAGES_AT_ONCE = 256
SHRINKAGE = 1e-3  # of the correlations of tokens towards none, so that those of equal tokens can be inverted
CLASS_SHRINKAGE = (
    2  # images of the mean of all that are added to those of a class, so that a rare class is not one image
)


class EmbeddingScale(nn.Module):
    """Tokens (N, L, D) to whitened components (N, L, K) and back.

    A class has a mean of its own. Around it, each principal component has a standard deviation, and its own correlations between
    the L tokens of an image: the second moments of the tokens, but for correlations of different components at different places.
    """

    means: torch.Tensor  # (C, D), (1, D) without classes
    basis: torch.Tensor  # (D, K), orthonormal columns
    deviation: torch.Tensor  # (K,)
    mixing: torch.Tensor  # (K, L, L), lower triangular: the Cholesky factors of the correlations of tokens
    unmixing: torch.Tensor  # (K, L, L): their inverses

    def __init__(self, width: int, components: int, tokens: int = 1, classes: int = 0):
        super().__init__()
        identity = torch.eye(tokens).repeat(components, 1, 1)
        self.register_buffer("means", torch.zeros(max(classes, 1), width))
        self.register_buffer("basis", torch.eye(width, components))
        self.register_buffer("deviation", torch.ones(components))
        self.register_buffer("mixing", identity)
        self.register_buffer("unmixing", identity.clone())

    @torch.no_grad()
    def fit(self, embeddings: torch.Tensor, label: torch.Tensor | None = None) -> None:
        """Fit to tokens (N, L, D) and numbers of classes (N,), in float64.

        Raises InputError for fewer than two images, or without any variation.
        """
        components, tokens = self.mixing.shape[:2]
        if len(embeddings) < 2:
            raise InputError(f"{len(embeddings)} images to fit the scale of embeddings to: expected at least 2")
        device, width = embeddings.device, embeddings.shape[-1]
        label = torch.zeros(len(embeddings), dtype=torch.long, device=device) if label is None else label
        parts = list(zip(embeddings.split(IMAGES_AT_ONCE), label.split(IMAGES_AT_ONCE), strict=True))
        sums = torch.zeros(self.means.shape, dtype=torch.float64, device=device)  # all as float64 would fill the memory
        for part, numbers in parts:
            sums.index_add_(0, numbers, part.double().mean(1))
        counts = torch.bincount(label, minlength=len(sums)).double()[:, None]
        common = sums.sum(0) / len(embeddings)
        means = (sums + CLASS_SHRINKAGE * common) / (counts + CLASS_SHRINKAGE)
        covariance = torch.zeros(width, width, dtype=torch.float64, device=device)
        for part, numbers in parts:
            rows = (part.double() - means[numbers, None]).flatten(0, 1)
            covariance += rows.T @ rows / (len(embeddings) * tokens - 1)
        variance, vectors = torch.linalg.eigh(covariance)
        variance, vectors = variance.flip(0)[:components], vectors.flip(1)[:, :components]
        if not variance[0] > 0:
            raise InputError("all embeddings to fit a scale to are equal")
        deviation = variance.clamp(min=SMALLEST_VARIANCE * float(variance[0])).sqrt()
        correlation = torch.zeros(components, tokens, tokens, dtype=torch.float64, device=device)
        for part, numbers in parts:
            white = ((part.double() - means[numbers, None]) @ vectors / deviation).permute(2, 1, 0)  # (K, L, n)
            correlation += white @ white.transpose(1, 2) / len(embeddings)
        scale = correlation.diagonal(dim1=1, dim2=2).mean(1).clamp(min=SMALLEST_VARIANCE)
        correlation = correlation / scale[:, None, None]
        identity = torch.eye(tokens, dtype=torch.float64, device=device)
        mixing = torch.linalg.cholesky((1 - SHRINKAGE) * correlation + SHRINKAGE * identity)
        fitted = {
            "means": means,
            "basis": vectors,
            "deviation": deviation,
            "mixing": mixing,
            "unmixing": torch.linalg.inv(mixing),
        }
        for name, value in fitted.items():
            getattr(self, name).copy_(value)

    def correlate(self, components: torch.Tensor) -> torch.Tensor:
        """Return principal components (N, L, K), each of variance 1 and correlated between tokens, of whitened ones."""
        return torch.einsum("kij,njk->nik", self.mixing, components)

    def decorrelate(self, parts: torch.Tensor) -> torch.Tensor:
        """Return whitened components (N, L, K) of those that `correlate` returns."""
        return torch.einsum("kij,njk->nik", self.unmixing, parts)

    def to_tokens(self, parts: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return the tokens (..., D) of principal components (..., K) of variance 1, around a mean."""
        return parts * self.deviation @ self.basis.T + mean

    def mean_of(self, label: torch.Tensor | None) -> torch.Tensor:
        """Return the means (N, 1, D) of classes by their numbers (N,), or (1, 1, D) without."""
        return self.means[:1, None] if label is None else self.means[label, None]

    def as_embeddings(self, differences: torch.Tensor) -> torch.Tensor:
        """Return differences of components (N, L, K) with the length, in principal axes, that they have as differences of tokens.

        In units of the mean deviation, so that the mean square of noise stays 1.
        """
        unit = self.deviation.square().mean().sqrt()
        return self.correlate(differences) * (self.deviation / unit)

    def whiten(self, embeddings: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Return the components (N, L, K) of tokens (N, L, D) of classes (N,); what lies outside of the components is lost."""
        return self.decorrelate((embeddings - self.mean_of(label)) @ self.basis / self.deviation)

    def colour(self, components: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Return the tokens (N, L, D) of components (N, L, K)."""
        return self.to_tokens(self.correlate(components), self.mean_of(label))
