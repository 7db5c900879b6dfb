"""The table of all scores: what each is called, and where it is shown. Command lines read it, so it imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple

PRDC_NEIGHBOURS = 5  # of precision, recall, density and coverage, as Naeem et al. 2020


class Quantity(NamedTuple):
    """The title and meaning of a score, and where it is shown.

    more_is_better: None for one that is only compared with others. metric: which of `formats.METRICS` computes it.
    shown: whether it has a card on top of a report, and a panel in the plots of a sweep. comparable: whether points of a
    sweep and the untrained network are scored by it, too. curve: what its curve over a training run is called; empty for one
    that is not taken while a run trains.
    """

    title: str
    more_is_better: bool | None
    about: str
    metric: str
    shown: bool = False
    comparable: bool = True
    curve: str = ""


QUANTITIES = {  # in the order of reports
    "fd": Quantity(
        "Fréchet distance",
        False,
        "between Gaussians fitted to the features; the FID, if they are Inception's",
        metric="fd",
        shown=True,
        curve="Fréchet distance of samples",
    ),
    "fd_infinity": Quantity(
        "Fréchet distance, extrapolated",
        False,
        "to infinitely many images, which takes its bias away",
        metric="fd_infinity",
        comparable=False,
    ),
    "kid": Quantity(
        "Kernel distance × 1000",
        False,
        "unbiased squared MMD with a cubic kernel; the KID, if features are Inception's",
        metric="kid",
        shown=True,
        curve="kernel distance of samples × 1000",
    ),
    "precision": Quantity(
        "Precision",
        True,
        f"share of synthetic images within reach of a real one: up to its {PRDC_NEIGHBOURS}th neighbour",
        metric="prdc",
        shown=True,
    ),
    "recall": Quantity(
        "Recall", True, "share of real images within reach of a synthetic one", metric="prdc", shown=True
    ),
    "density": Quantity(
        "Density",
        True,
        f"number of real images within whose reach a synthetic one is, over {PRDC_NEIGHBOURS}",
        metric="prdc",
    ),
    "coverage": Quantity("Coverage", True, "share of real images with a synthetic one within reach", metric="prdc"),
    "similarity": Quantity(
        "Similarity of pairs",
        True,
        "mean cosine of a real image and the one sampled for it",
        metric="similarity",
        shown=True,
        curve="similarity of pairs",
    ),
    "random_similarity": Quantity(
        "Similarity of random pairs",
        None,
        "the same of images that do not belong together, to compare with",
        metric="similarity",
    ),
    "above_random": Quantity(
        "Pairs above random",
        True,
        "how often a pair is more similar than a random one; 0.5 is chance",
        metric="similarity",
        shown=True,
        curve="pairs above random",
    ),
    "feature_distance": Quantity(
        "Feature distance of pairs",
        False,
        "Euclidean, where two random real images are 1 apart",
        metric="similarity",
    ),
    "nearest_training": Quantity(
        "Nearest training image",
        None,
        "mean cosine of a synthetic image and the training image most like it",
        metric="neighbours",
        comparable=False,
    ),
    "nearest_training_of_real": Quantity(
        "The same of real images",
        None,
        "to compare with: samples that lie nearer may be copies",
        metric="neighbours",
        comparable=False,
    ),
}
SHOWN = tuple(name for name, each in QUANTITIES.items() if each.shown)
COMPARED_METRICS = tuple(dict.fromkeys(each.metric for each in QUANTITIES.values() if each.comparable))
BEST_BY = tuple(  # by which the best point of a sweep can be chosen
    name for name, each in QUANTITIES.items() if each.comparable and each.more_is_better is not None
)
CURVES = {name: each.curve for name, each in QUANTITIES.items() if each.curve}
CURVE_METRICS = tuple(dict.fromkeys(QUANTITIES[name].metric for name in CURVES))
