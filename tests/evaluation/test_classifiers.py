"""Classifiers of probes: neighbours, the choice of the penalty, and folds."""

from __future__ import annotations

import numpy as np
from scoring_data import (
    gaussians,
)

from diffusion.evaluation.classifiers import (
    C_VALUES,
    choose_c,
    fit_knn,
    fit_linear,
    make_folds,
)
from diffusion.evaluation.sets.labelled import LabelledEmbeddings

CLASSES = ["a", "b", "c"]


def test_knn_votes_equal_a_brute_search():
    training, test = gaussians(15, 1, seed=0), gaussians(9, 1, seed=1)
    unit = [part.features / np.linalg.norm(part.features, axis=1, keepdims=True) for part in (training, test)]
    nearest = np.argsort(-unit[1] @ unit[0].T, axis=1)[:, :7]
    votes = [np.bincount(training.labels[row], minlength=3) / 7 for row in nearest]
    assert np.allclose(fit_knn(training, 7).predict(test.features), votes)


def test_the_penalty_is_chosen_on_held_out_rows():
    noise, signal = gaussians(20, 0, seed=0, width=60), gaussians(20, 8, seed=0, width=60)
    chosen = [choose_c(each, make_folds(each, 0)) for each in (noise, signal)]
    assert chosen[0] == C_VALUES[0] and chosen[1] > 1e-3
    single = gaussians(1, 8, seed=0)
    assert make_folds(single, 0) == [] and "too few images" in fit_linear(single).notes[0]


def test_folds_keep_groups_together_and_have_every_class():
    rows = gaussians(20, 1, seed=0, groups=12)
    found = make_folds(rows, seed=0)
    assert len(found) == 5
    for parts in found:
        groups = [set(rows.groups[part]) for part in parts]
        assert not groups[0] & groups[1] and all(set(rows.labels[part]) == {0, 1, 2} for part in parts)
    slide_per_class = LabelledEmbeddings(rows.features, rows.labels, rows.labels.astype(str))
    assert len(make_folds(slide_per_class, 0)) == 5  # by images: no fold of whole slides has all classes
