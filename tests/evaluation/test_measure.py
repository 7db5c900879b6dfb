"""Sets to score: which sources fit together, and what a reader must know of them."""

from __future__ import annotations

import numpy as np
import pytest
from scoring_data import folder_of

from diffusion.evaluation.measure import REAL, SYNTHETIC, describe_sets, open_sources
from diffusion.evaluation.sets.features import Features, Row
from diffusion.evaluation.sets.image_set import ImageSet
from diffusion.utils.errors import InputError


def test_numbered_rows_are_paired_only_between_sets_of_equal_size(tmp_path):
    for name, rows in (("a", 3), ("b", 3), ("c", 2)):
        np.save(tmp_path / f"{name}.npy", np.ones((rows, 2), np.float32))
    equal = open_sources({REAL: tmp_path / "a.npy", SYNTHETIC: tmp_path / "b.npy"}, "refuse")
    assert set(equal[REAL].rows) == set(equal[SYNTHETIC].rows)
    unequal = open_sources({REAL: tmp_path / "a.npy", SYNTHETIC: tmp_path / "c.npy"}, "refuse")
    assert not set(unequal[REAL].rows) & set(unequal[SYNTHETIC].rows)
    with pytest.raises(InputError, match="give features of all, or images of all"):
        open_sources({REAL: tmp_path / "a.npy", SYNTHETIC: folder_of(tmp_path / "images", [1])}, "refuse")


def test_notes_name_windows_and_unequal_numbers(tmp_path):
    images = {REAL: ImageSet.open(folder_of(tmp_path / "real", [1, 2]), "windows")}
    images[SYNTHETIC] = ImageSet.open(folder_of(tmp_path / "syn", [1, 2]), "resize")
    rows = [Row("patch_0", 0), Row("patch_0", 1), Row("patch_1")]
    features = {
        REAL: Features(rows, 1, [], [], "stub"),
        SYNTHETIC: Features(rows[:1], 1, [], [], "stub", {"patch_1": "cannot be read"}),
    }
    assert describe_sets(images, features) == [
        "Unequal numbers of images (real 3, synthetic 1); a distance grows as images get fewer.",
        "The real images are 3 windows of 256 pixels, of 2 files.",
        "1 synthetic image is left out: patch_1 cannot be read.",
        "Those synthetic images that are not of 256 pixels were resized.",
    ]
