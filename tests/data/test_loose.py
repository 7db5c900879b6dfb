"""Loose features: the names of their files."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion.data.features.loose import LooseFeatures, feature_path
from diffusion.data.features.npy import write_feature
from diffusion.data.features.parts import part_prefixes
from diffusion.data.features.store import find_endings, open_features
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


def test_an_error_names_the_endings_of_features_that_are_there(feature_root):
    """Of a set that was extracted with other encoders than those asked for."""
    names = ["set/brca/single_1024/slide_0/0_0.jpeg"]
    assert find_endings(feature_root / "patches", names) == {"sd3_vae", "uni"}
    with pytest.raises(MissingError, match="with the endings sd3_vae, uni: name these with --latent-suffix"):
        open_features(feature_root, None, "set_1024", names, 1024, part_prefixes("tiny_vae", "mobilenetv2"))
    (feature_root / "patches" / names[0]).with_name("0_0_uni.npy").unlink()
    (feature_root / "patches" / names[0]).with_name("0_0_sd3_vae.npy").unlink()
    with pytest.raises(MissingError, match=r"[^,]; make them with pixcell features"):
        open_features(feature_root, None, "set_1024", names, 1024, part_prefixes("tiny_vae", "mobilenetv2"))
