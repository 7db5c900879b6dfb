"""Scores of embeddings that a prior has drawn: their distribution, their classes, their neighbours, and whether they are copies.

Letters: N images, L tokens of an image, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.evaluation.classifiers import fit_linear
from diffusion.evaluation.metrics.distances import compute_fid, compute_prdc
from diffusion.evaluation.metrics.pairs import find_nearest
from diffusion.evaluation.sets.features import Features
from diffusion.evaluation.sets.labelled import LabelledEmbeddings
from diffusion.utils.errors import InputError

CLASSIFIED = 2000  # training images of the classifier, at most
LEAST = 10  # images of a set
COPY_LEVEL = 0.05  # of the test for copies


@dataclass(frozen=True)
class EmbeddingSet:
    """Tokens (N, L, D) of images, and the numbers of their classes (N,), where there are classes."""

    tokens: torch.Tensor
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def images(self) -> torch.Tensor:
        """Return one row for each image (N, D), the mean of its tokens."""
        return self.tokens.mean(1)

    def draw(self, count: int, seed: int) -> EmbeddingSet:
        """Return `count` images drawn without replacement; all when there are no more."""
        order = np.random.default_rng(seed).permutation(len(self))[:count]
        return EmbeddingSet(self.tokens[order], None if self.labels is None else self.labels[order])


@dataclass(frozen=True)
class PriorScores:
    """Values by name, counts of images, and what a reader must know, in sentences."""

    values: dict[str, float]
    counts: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        return {"values": self.values, "counts": self.counts, "notes": self.notes}


def score_prior(
    drawn: EmbeddingSet, held_out: EmbeddingSet, training: EmbeddingSet, seed: int = 0, total: int | None = None
) -> PriorScores:
    """Score drawn embeddings against those of held-out tissue; equally many of each set are compared.

    fd: Frechet distance of drawn to held-out tokens; fd_real: of training to held-out ones, what a perfect prior would reach;
    fd_halves: of both halves of the held-out, twice as few. precision, recall, coverage: of images, by their 5 nearest neighbours.
    neighbours, neighbours_real: correlation of adjacent tokens, less the mean embedding. nearest, nearest_real: median cosine of
    a drawn and of a held-out image with the nearest training image; p_copy: one-sided Mann-Whitney test that the drawn ones lie
    nearer. accuracy, accuracy_real: of a linear classifier of training tissue, for the classes that were asked for, and on
    held-out tissue. total: images of the training set, where `training` is a part of them. Raises InputError for fewer than 10
    images of a set.
    """
    from scipy.stats import mannwhitneyu

    count = min(len(drawn), len(held_out), len(training))
    check_counts(len(drawn), len(held_out), len(training))
    sets = [each.draw(count, seed + number) for number, each in enumerate((drawn, held_out, training))]
    synthetic, real, known = (each.tokens.flatten(0, 1) for each in sets)
    half = len(real) // 2
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(real)))
    values = {
        "fd": compute_fid(real, synthetic),
        "fd_real": compute_fid(real, known),
        "fd_halves": compute_fid(real[order[:half]], real[order[half : 2 * half]]),
    }
    found = compute_prdc(sets[1].images, sets[0].images)
    values |= {
        "precision": float(found.precision.double().mean()),
        "recall": float(found.recall.double().mean()),
        "coverage": float(found.coverage.double().mean()),
    }
    if drawn.tokens.shape[1] > 1:
        mean = training.tokens.flatten(0, 1).mean(0)
        values |= {
            "neighbours": neighbour_correlation(drawn.tokens, mean),
            "neighbours_real": neighbour_correlation(held_out.tokens, mean),
        }
    among = Features.from_tensor(training.images)
    nearest, nearest_real = (
        find_nearest(Features.from_tensor(each.images), among).similarity for each in (drawn, held_out)
    )
    test: Any = mannwhitneyu(nearest, nearest_real, alternative="greater")
    values |= {
        "nearest": float(np.median(nearest)),
        "nearest_real": float(np.median(nearest_real)),
        "p_copy": float(test.pvalue),
    }
    counts = {"drawn": len(drawn), "held_out": len(held_out), "training": len(training), "compared": count}
    verdict = "nearer to training images than" if test.pvalue < COPY_LEVEL else "no nearer to training images than"
    notes = [
        f"Drawn embeddings are {verdict} held-out real ones (one-sided Mann-Whitney test of {len(drawn)} and {len(held_out)}, "
        f"p {test.pvalue:.2g}; copies would be nearer)."
    ]
    if total is not None and total > len(training):
        notes.append(f"Looked up among {len(training)} of {total} training images: copies of the others are not seen.")
    labels = [each.labels for each in (drawn, held_out, training)]
    if all(each is not None and len(np.unique(each)) > 1 for each in labels):
        values |= compare_classes(drawn, held_out, training.draw(CLASSIFIED, seed))
    return PriorScores(values, counts, notes)


def check_counts(*counts: int) -> None:
    """Raise InputError for fewer images of a set than scores can be taken of."""
    if min(counts) < LEAST:
        raise InputError(
            f"{min(counts)} images to score a prior by: expected {LEAST} or more drawn, held-out and training ones"
        )


def neighbour_correlation(tokens: torch.Tensor, mean: torch.Tensor) -> float:
    """Return the mean cosine of adjacent tokens of grids (N, L, D), horizontally and vertically, less a mean embedding (D,)."""
    side = round(tokens.shape[1] ** 0.5)
    grid = F.normalize(tokens - mean, dim=-1).unflatten(1, (side, side))
    across, down = (grid[:, :, 1:] * grid[:, :, :-1]).sum(-1), (grid[:, 1:] * grid[:, :-1]).sum(-1)
    return float(torch.cat([across.flatten(), down.flatten()]).double().mean())


def compare_classes(drawn: EmbeddingSet, held_out: EmbeddingSet, training: EmbeddingSet) -> dict[str, float]:
    """Return the accuracy of a linear classifier of training tissue on drawn and on held-out embeddings."""
    assert training.labels is not None and drawn.labels is not None and held_out.labels is not None
    rows = training.images.numpy()
    classifier = fit_linear(LabelledEmbeddings(rows, training.labels, np.arange(len(rows)).astype(str)))
    present = np.unique(training.labels)

    def accuracy(each: EmbeddingSet, labels: np.ndarray) -> float:
        return float((present[classifier.predict(each.images.numpy()).argmax(1)] == labels).mean())

    return {"accuracy": accuracy(drawn, drawn.labels), "accuracy_real": accuracy(held_out, held_out.labels)}


SCORE_TITLES: Sequence[tuple[str, str]] = (
    ("fd", "Fréchet distance, drawn to held-out"),
    ("fd_real", "  of training to held-out"),
    ("fd_halves", "  of halves of the held-out"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("coverage", "coverage"),
    ("neighbours", "correlation of adjacent tokens, drawn"),
    ("neighbours_real", "  held-out"),
    ("accuracy", "accuracy of the class, drawn"),
    ("accuracy_real", "  held-out"),
    ("nearest", "cosine with the nearest training image, drawn"),
    ("nearest_real", "  held-out"),
    ("p_copy", "p that drawn ones are no nearer"),
)
