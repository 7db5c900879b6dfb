"""Scores of segmented nuclei, each against a plain implementation that loops over objects and pixels."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.evaluation.metrics.cells import compare_segmentations


def random_labels(seed: int, objects: int = 12, size: int = 48) -> np.ndarray:
    """Discs and rectangles that hide parts of each other, with numbers that have gaps."""
    random = np.random.default_rng(seed)
    labels, (rows, columns) = np.zeros((size, size), int), np.mgrid[:size, :size]
    for number in random.choice(np.arange(1, 99), objects, replace=False):
        y, x, r = *random.integers(0, size, 2), random.integers(2, 8)
        shape = (
            np.hypot(rows - y, columns - x) <= r
            if random.random() < 0.5
            else (abs(rows - y) < r) & (abs(columns - x) < 3)
        )
        labels[shape] = number
    return labels


def shifted(labels: np.ndarray, seed: int) -> np.ndarray:
    """The same objects a little elsewhere, some lost and some new."""
    random = np.random.default_rng(seed)
    found = np.roll(labels, random.integers(-2, 3, 2), (0, 1))
    found[np.isin(found, random.choice(np.unique(found), 3))] = 0
    return np.where(random_labels(seed + 100, 4) > 0, 200 + random_labels(seed + 100, 4), found)


def plain_scores(reference: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """The definitions, pixel set by pixel set."""

    def objects(labels):
        return [set(map(tuple, np.argwhere(labels == n))) for n in np.unique(labels) if n]

    ours, theirs = objects(reference), objects(found)
    all_ours, all_theirs = set().union(*ours), set().union(*theirs)
    dice = 2 * len(all_ours & all_theirs) / (len(all_ours) + len(all_theirs))
    covered = np.mean([len(each & all_theirs) >= 0.5 * len(each) for each in ours])
    # Kumar et al. 2017, algorithm 1
    intersection, union, used = 0, 0, set()
    for each in ours:
        ratios = [len(each & other) / len(each | other) for other in theirs]
        best = int(np.argmax(ratios))
        if ratios[best] > 0:
            intersection, union = intersection + len(each & theirs[best]), union + len(each | theirs[best])
            used.add(best)
        else:
            union += len(each)
    union += sum(len(other) for i, other in enumerate(theirs) if i not in used)
    # Kirillov et al. 2019, equation 1
    pairs = [len(a & b) / len(a | b) for a in ours for b in theirs if len(a & b) / len(a | b) > 0.5]
    quality = 2 * len(pairs) / (len(ours) + len(theirs))
    return dict(
        dice=dice, found=covered, aji=intersection / union, dq=quality, sq=np.mean(pairs) if pairs else 0.0,
        pq=quality * (np.mean(pairs) if pairs else 0.0),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_those_of_the_definitions(seed):
    reference = random_labels(seed)
    found = shifted(reference, seed)
    scores = compare_segmentations(reference, found)._asdict()
    expected = plain_scores(reference, found)
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-9), name
    assert 0 < expected["aji"] < 1 and expected["pq"] < 1 and (expected["pq"] > 0 or seed == 3)


def test_the_ends_of_the_scale():
    labels, none = random_labels(1), np.zeros((48, 48), int)
    assert set(compare_segmentations(labels, labels)) == {1.0}
    assert set(compare_segmentations(none, none)) == {1.0}
    assert compare_segmentations(labels, none)[:4] == (0.0, 0.0, 0.0, 0.0)
    assert compare_segmentations(none, labels).dice == compare_segmentations(none, labels).aji == 0.0
    with pytest.raises(ValueError, match="expected one image"):
        compare_segmentations(labels, none[:3])
