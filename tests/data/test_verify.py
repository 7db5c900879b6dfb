"""Verification of the images and features that an index lists."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import WIDTH

from diffusion.data.features.loose import LooseFeatures, feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.index.patch_index import index_path, iterate_names
from diffusion.data.index.verify import PatchCheck, find_usual_widths, verify_patches


@pytest.mark.parametrize("workers", [1, 2])
def test_faults_are_named_by_part(feature_root, workers):
    names = list(iterate_names(index_path(feature_root), "set_1024"))
    features = LooseFeatures(feature_root / "patches", 1024, {"latents": "sd3_vae", "tokens": "uni"})
    write_feature(feature_path(features.folder, names[1], "uni"), np.ones((16, WIDTH + 1)))
    feature_path(features.folder, names[2], "sd3_vae").write_bytes(b"torn")
    widths = find_usual_widths(features, names)
    assert widths == {"tokens": WIDTH}
    found = dict(verify_patches(names, PatchCheck(feature_root, 1024, features, widths), workers))
    assert [[fault.kind for fault in found[name]] for name in names] == [
        ["image missing"],
        ["image missing", "embeddings bad"],
        ["image missing", "latents bad"],
    ]
    assert f"embeddings of width {WIDTH + 1}, others of {WIDTH}" in found[names[1]][1].reason


def test_images_are_verified_without_features(tissue_root):
    name = next(iterate_names(index_path(tissue_root), "small_256"))
    assert not PatchCheck(tissue_root, 256, None).find_faults(name)
    assert [fault.kind for fault in PatchCheck(tissue_root, 512, None).find_faults(name)] == ["image bad"]
