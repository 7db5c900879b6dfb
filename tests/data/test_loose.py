"""Loose features: the names of their files."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.data.features.loose import LooseFeatures, feature_path
from diffusion.data.features.npy import write_feature
from diffusion.utils.errors import MissingError


def test_feature_files_are_named_after_patch_and_prefix(tmp_path):
    name = "tcga/brca/single_1024/TCGA-AB.svs/3_4.jpeg"
    assert feature_path(tmp_path, name, "uni") == tmp_path / "tcga/brca/single_1024/TCGA-AB.svs/3_4_uni.npy"


def test_a_store_tells_which_parts_are_there(tmp_path):
    store = LooseFeatures(tmp_path, 256, {"latents": "sd3_vae", "tokens": "uni"})
    write_feature(feature_path(tmp_path, "set/a/0_0.jpeg", "uni"), np.ones((1, 4)))
    assert store.present("set/a/0_0.jpeg") == {"latents": False, "tokens": True}
    assert np.array_equal(store.read_part("tokens", "set/a/0_0.jpeg"), np.ones((1, 4)))
    with pytest.raises(MissingError, match="0_0_sd3_vae.npy"):
        store.read("set/a/0_0.jpeg")
