"""Surveys of an index: cohorts, coverage by features, and the sheet of pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffusion.data.features.loose import LooseFeatures, feature_path
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.data.index.survey import CohortCount, Coverage, count_cohorts, count_coverage, render_patch_sheet


def test_patches_and_slides_are_counted_by_cohort():
    names = [f"toy/{'ab'[i % 2]}/single_256/slide_{i // 4}/{i % 4}_0.jpeg" for i in range(8)]
    assert count_cohorts(names) == {"a": CohortCount(4, 2), "b": CohortCount(4, 2)}


def test_coverage_counts_every_part(feature_root):
    names = list(iterate_names(index_path(feature_root), "set_1024"))
    features = LooseFeatures(feature_root / "patches", 1024, {"latents": "sd3_vae", "tokens": "uni"})
    feature_path(feature_root / "patches", names[0], "uni").unlink()
    found = count_coverage(feature_root, names, features, features.prefixes)
    assert found == Coverage(3, 0, {"latents": 3, "tokens": 2})
    assert count_coverage(feature_root, names, None, features.prefixes).parts == {"latents": 0, "tokens": 0}


def test_a_sheet_has_a_red_frame_for_a_picture_that_cannot_be_read(tmp_path):
    (tmp_path / "patches").mkdir()
    Image.new("RGB", (64, 64), (0, 90, 0)).save(tmp_path / "patches/a.png")
    sheet, unreadable = render_patch_sheet(tmp_path, ["a.png", "b.png"], columns=2, side=40)
    pixels = np.asarray(sheet)
    assert tuple(pixels[20, 20]) == (0, 90, 0) and tuple(pixels[20, 42]) == (255, 0, 0)
    assert len(unreadable) == 1 and "no image" in unreadable[0]
